"""What all baselines share: fitting, saving, loading, and their messages."""

import json

import numpy as np
import pytest
import torch

import hggep_sc as hggep
from hggep_sc.methods.baselines import BASELINES, Baseline, GeneMean, LowRankRidge, Ridge
from hggep_sc.section import open_sections

SETTINGS = {"genes": 12, "device": "cpu", "progress": False}
methods = pytest.mark.parametrize("method", BASELINES)


def fit(method, opened, config, weights=None, **settings) -> Baseline:
    return BASELINES[method].fit(opened[:2], config, weights=weights, **{**SETTINGS, **settings})


def test_names():
    assert list(BASELINES) == ["gene_mean", "nearest_patches", "ridge", "low_rank_ridge", "hest_ridge"]
    assert all(name == baseline.method for name, baseline in BASELINES.items())


@methods
def test_round_trip(method, opened, config, weights, tmp_path):
    model = fit(method, opened, config, weights, seed=3)
    model.save(tmp_path / "m")
    again = BASELINES[method].load(tmp_path / "m")
    for a, b in zip(model.predict(opened[2]), again.predict(opened[2]), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    for name in ("id", "genes", "config", "scale", "mpp", "seed", "method"):
        assert getattr(again, name) == getattr(model, name), name
    assert repr(again) == repr(model)
    assert again.fingerprint.role(opened[0], again.genes) == "train"
    assert again.fingerprint.role(opened[2], again.genes) == "held out"
    assert {p.suffix for p in (tmp_path / "m").iterdir()} == {".json", ".safetensors", ".md"}
    assert json.loads((tmp_path / "m" / "model.json").read_text())["method"] == method
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)


@methods
def test_what_is_no_number_is_neither_loaded_nor_predicted(method, opened, config, weights, tmp_path):
    model = fit(method, opened[:2], config, weights)
    model.arrays["gene_mean"][1] = np.nan
    model.__dict__.pop("id", None)
    with pytest.raises(ValueError, match=r"section 'S3': what the model predicts at 40 of 40 spots is NaN or infinite"):
        model.predict(opened[2])
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"m is damaged: .* NaN or infinite \(entry 'gene_mean'\)"):
        BASELINES[method].load(tmp_path / "m")


@methods
def test_same_seed_same_model(method, opened, config, weights):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = (fit(method, opened, config, weights) for _ in range(2))
    assert a.id == b.id
    assert a.id != fit(method, opened[1:], config, weights).id
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_ids_differ_between_methods(opened, config):
    assert len({fit(method, opened, config).id for method in BASELINES}) == len(BASELINES)


def test_damaged(opened, config, weights, tmp_path):
    fit("ridge", opened, config, weights).save(tmp_path / "m")
    for which in ("arrays", "network", "training"):
        (file,) = (tmp_path / "m").glob(f"{which}-*.safetensors")
        content = file.read_bytes()
        file.write_bytes(content[:-8] + b"12345678")
        with pytest.raises(ValueError, match=rf"damaged.*{which}.*checksum"):
            Ridge.load(tmp_path / "m")
        file.write_bytes(content)
    manifest = tmp_path / "m" / "model.json"
    manifest.write_text(manifest.read_text().replace('"genes"', '"gene_names"'))
    with pytest.raises(ValueError, match=r"model\.json is damaged, or was changed by hand \(its checksum differs\)"):
        Ridge.load(tmp_path / "m")


def test_edited_genes(opened, config, tmp_path):
    model = fit("ridge", opened, config)
    model.save(tmp_path / "m")
    manifest = tmp_path / "m" / "model.json"
    manifest.write_text(manifest.read_text().replace(f'"{model.genes[0]}"', '"OTHER"'))
    with pytest.raises(ValueError, match="changed by hand"):
        Ridge.load(tmp_path / "m")


def test_loaded_by_another_class(opened, config, trained, tmp_path):
    fit("ridge", opened, config).save(tmp_path / "ridge")
    trained.save(tmp_path / "network")
    with pytest.raises(ValueError, match=r"method 'ridge', not 'hggep': load it by hggep_sc\.methods\.load"):
        hggep.HGGEP.load(tmp_path / "ridge")
    with pytest.raises(ValueError, match=r"load it by hggep_sc\.methods\.load"):
        LowRankRidge.load(tmp_path / "ridge")
    with pytest.raises(ValueError, match=r"method 'hggep', not 'gene_mean': load it by hggep_sc\.methods\.load"):
        GeneMean.load(tmp_path / "network")


def test_flips_belong_to_the_network(sections, opened, config):
    with pytest.raises(ValueError, match=r"average_flips= is for method='hggep': method='ridge' has no use for it"):
        hggep.tl.predict(sections["S3"], fit("ridge", opened, config), average_flips=True)


def test_batch_size(opened, config):
    with pytest.raises(ValueError, match="batch_size=0"):
        fit("gene_mean", opened, config).predict(opened[2], batch_size=0)


def test_no_counts(sections, config):
    sections["S2"].X = sections["S2"].X * 0
    with pytest.raises(ValueError, match=r"'S2' has no counts.*layer="):
        fit("ridge", open_sections(sections), config)


def test_unknown_device(opened, config):
    with pytest.raises(ValueError, match="device='tpu'"):
        fit("ridge", opened, config, device="tpu")


def test_panel_and_base_of_the_logarithm(opened, config):
    model = fit("gene_mean", opened, config.replace(normalize="panel", log_base="10", target_sum=100))
    counts = opened[1].counts(model.genes).toarray().astype(float)
    first = opened[0].counts(model.genes).toarray().astype(float)
    means = [
        np.log10(1 + 100 * c[c.sum(1) > 0] / c[c.sum(1) > 0].sum(1, keepdims=True)).mean(0) for c in (first, counts)
    ]
    np.testing.assert_allclose(model.predict(opened[2])[0][0], np.mean(means, axis=0), rtol=1e-5)


def test_unknown_scale_is_said(opened, config, warned):
    model = fit("ridge", opened, config)
    opened[2].mpp = None
    model.predict(opened[2])
    assert "a full-resolution px is taken to be that of the training sections, 1 um" in warned.text
