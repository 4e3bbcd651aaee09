import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch

import hggep_sc as hggep
from helpers import CPU, TINY, MeanColour, as_spatialdata, assert_same
from hggep_sc.section import open_sections
from hggep_sc.storage import models as storage

FILES = {"README.md", "model.json", "network", "training", "linear", "confidence"}


@pytest.fixture
def saved(trained, tmp_path):
    path = tmp_path / "her2.hggep"
    trained.save(path)
    return path


def test_round_trip(saved, trained, sections):
    again = hggep.HGGEP.load(saved, device="cpu")
    (section,) = open_sections(sections["S3"])
    for a, b in zip(trained.predict(section, device="cpu"), again.predict(section, device="cpu"), strict=True):
        assert np.array_equal(a, b)
    assert (again.id, again.genes, again.config, again.scale) == (
        trained.id,
        trained.genes,
        trained.config,
        trained.scale,
    )
    assert (again.mpp, again.seed) == (trained.mpp, trained.seed)
    pd.testing.assert_frame_equal(again.history, trained.history)
    assert again.fingerprint.role(open_sections(sections["S1"])[0], again.genes) == "train"
    assert repr(again) == repr(trained)


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    hggep.HGGEP.load(saved, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


class TestNoNumbers:
    """A model whose weights are no numbers, as of a training that diverged in another tool."""

    @pytest.fixture(params=["network", "linear"])
    def spoilt(self, saved, request):
        model = hggep.HGGEP.load(saved, device="cpu")
        if request.param == "network":
            with torch.no_grad():
                next(p for p in model.network.parameters() if p.requires_grad).view(-1)[0] = np.nan
        else:
            model.linear.coefficients[0, 0] = np.inf
        model.__dict__.pop("id", None)
        return model

    def test_is_not_loaded(self, spoilt, tmp_path):
        spoilt.save(tmp_path / "spoilt")
        with pytest.raises(ValueError, match=r"spoilt is damaged: what .* learnt is NaN or infinite \(entry"):
            hggep.HGGEP.load(tmp_path / "spoilt")

    def test_does_not_predict(self, spoilt, sections, tmp_path):
        section, before = sections["S3"], sections["S3"].copy()
        message = r"what the model predicts at \d+ of 40 spots is NaN or infinite, and nothing is written"
        for how in ({}, {"checkpoint_dir": tmp_path / "run"}, {"checkpoint_dir": tmp_path / "run"}):
            with pytest.raises(ValueError, match=message):
                hggep.tl.predict(section, spoilt, device="cpu", **how)
        assert_same(section, before)
        with pytest.raises(ValueError, match=message):
            hggep.tl.predict(as_spatialdata(section), spoilt, device="cpu", copy=True)
        table = hggep.tl.predict_slides({"S3": section}, spoilt, tmp_path / "slides", device="cpu", progress=False)
        assert "is NaN or infinite, and nothing is written" in table["error"].iloc[0]
        assert not list((tmp_path / "slides").glob("*.h5ad"))


def test_a_module_may_hold_infinity(sections, tmp_path):
    """Such as a mask of attention, which is no weight."""
    module = MeanColour()
    module.register_buffer("mask", torch.tensor([-np.inf, 0.0]))
    how = {"genes": 8, "config": {**TINY, "epochs": 1, "cross_fit": False}, **CPU}
    model = hggep.tl.fit(sections, encoder=module, **how)
    model.save(tmp_path / "m")
    hggep.HGGEP.load(tmp_path / "m", encoder=module)


def test_no_pickle_in_the_folder(saved):
    assert {p.suffix for p in saved.iterdir()} == {".json", ".safetensors", ".md"}


def test_repr_tells_what_it_is(trained):
    text = repr(trained)
    for part in ("default", "20 genes", "60 um, 120 um", "S1, S2", "3 epochs", "library total", trained.id):
        assert part in text


class TestOverwrite:
    def test_existing_model_is_kept(self, saved, trained):
        before = (saved / "model.json").read_bytes()
        with pytest.raises(FileExistsError, match="overwrite=True"):
            trained.save(saved)
        assert (saved / "model.json").read_bytes() == before

    def test_replaced_on_request(self, saved, sections):
        other = hggep.tl.fit(sections["S1"], genes=5, config={"epochs": 1, "width": 16, "patch_size": 32}, **CPU)
        other.save(saved, overwrite=True)
        assert hggep.HGGEP.load(saved, device="cpu").id == other.id
        assert {p.name.split("-")[0] for p in saved.iterdir()} == FILES
        assert len(list(saved.iterdir())) == len(FILES)

    def test_folder_of_other_files_is_refused(self, trained, tmp_path):
        (tmp_path / "notes.txt").write_text("keep me")
        with pytest.raises(FileExistsError, match="not an hggep_sc model"):
            trained.save(tmp_path, overwrite=True)
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_other_weights_are_no_model(self, trained, tmp_path):
        (tmp_path / "my_backbone.safetensors").write_bytes(b"precious")
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="not an hggep_sc model"):
                trained.save(tmp_path, overwrite=overwrite)
        assert [p.name for p in tmp_path.iterdir()] == ["my_backbone.safetensors"]

    @pytest.mark.parametrize("survives", range(4))
    def test_crash_keeps_the_earlier_model(self, saved, sections, trained, monkeypatch, survives):
        """Power is cut before the 1st, 2nd, 3rd and 4th file is in place."""
        other = hggep.tl.fit(sections["S1"], genes=5, config={"epochs": 1, "width": 16, "patch_size": 32}, **CPU)
        real, written = storage._write, []

        def cut(path, content):
            if len(written) == survives:
                raise OSError("power cut")
            written.append(path)
            real(path, content)

        monkeypatch.setattr(storage, "_write", cut)
        with pytest.raises(OSError, match="power cut"):
            other.save(saved, overwrite=True)
        assert hggep.HGGEP.load(saved, device="cpu").id == trained.id
        monkeypatch.setattr(storage, "_write", real)
        other.save(saved, overwrite=True)
        assert hggep.HGGEP.load(saved, device="cpu").id == other.id
        assert {p.name.split("-")[0] for p in saved.iterdir()} == FILES
        assert len(list(saved.iterdir())) == len(FILES)


class TestDamaged:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.hggep"):
            hggep.HGGEP.load(tmp_path / "nothing.hggep")

    def test_foreign_folder(self, tmp_path):
        (tmp_path / "model.pt").write_bytes(b"x")
        with pytest.raises(ValueError, match="not an hggep_sc model"):
            hggep.HGGEP.load(tmp_path)

    def test_foreign_json(self, tmp_path):
        (tmp_path / "model.json").write_text('{"architecture": "resnet"}')
        with pytest.raises(ValueError, match="not of an hggep_sc model"):
            hggep.HGGEP.load(tmp_path)

    def test_broken_json(self, saved):
        text = (saved / "model.json").read_text()
        (saved / "model.json").write_text(text[: len(text) // 2])
        with pytest.raises(ValueError, match="damaged"):
            hggep.HGGEP.load(saved)

    @pytest.mark.parametrize("which", ["network", "training", "linear", "confidence"])
    def test_truncated_or_missing_file(self, saved, which):
        (file,) = saved.glob(f"{which}-*.safetensors")
        content = file.read_bytes()
        file.write_bytes(content[:-10])
        with pytest.raises(ValueError, match=rf"damaged.*{which}"):
            hggep.HGGEP.load(saved)
        file.unlink()
        with pytest.raises(ValueError, match=rf"damaged.*{which}"):
            hggep.HGGEP.load(saved)

    def test_edited_genes(self, saved):
        content = json.loads((saved / "model.json").read_text())
        content["genes"][:2] = content["genes"][1::-1]
        (saved / "model.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="damaged"):
            hggep.HGGEP.load(saved)

    def test_newer_format(self, saved):
        content = json.loads((saved / "model.json").read_text())
        (saved / "model.json").write_text(json.dumps({**content, "format": 99}))
        with pytest.raises(ValueError, match="update the package"):
            hggep.HGGEP.load(saved)


class TestPublished:
    """`fill.py` makes a state dict with the released code's names by formula."""

    @pytest.fixture(scope="class")
    def checkpoint(self, shared, tmp_path_factory):
        spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
        fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fill)
        state = {}
        for line in (shared / "reference" / "state_dict_keys.tsv").read_text().splitlines():
            name, _, shape = line.partition("\t")
            size = tuple(int(n) for n in shape.split("x")) if shape else ()
            counter = name.endswith("num_batches_tracked")
            state[name] = torch.tensor(0) if counter else fill.values(name, size)
        path = tmp_path_factory.mktemp("published") / "published.pth"
        torch.save(state, path)
        return path

    def test_loads_and_predicts_the_reference(self, shared, checkpoint):
        """A section whose spots and patches are those of the parity vectors gives their prediction."""
        vectors = np.load(shared / "reference" / "parity_c2_32spots.npz")
        genes = [f"G{i}" for i in range(50)]
        model = hggep.HGGEP.from_published(checkpoint, genes=genes)
        assert model.scale.log_base == "10"
        # paste the 32 patches (channel, x, y) into one image, a row of squares
        strip = np.concatenate(list(vectors["patches"].transpose(0, 3, 2, 1)), axis=1)
        centres = np.array([[56.0 + 112 * i, 56.0] for i in range(32)])
        from anndata import AnnData

        adata = AnnData(shape=(32, 50))
        adata.var_names = genes
        adata.obsm["spatial"] = centres + np.array([0.9, 0.6])  # truncated, as the released code does
        adata.obs["array_col"], adata.obs["array_row"] = vectors["loc"].T
        adata.uns["spatial"] = {
            "c2": {
                "images": {"hires": strip},
                "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 100},
            }
        }
        hggep.tl.predict(adata, model, device="cpu", progress=False)
        error = np.abs(adata.layers["hggep"] - vectors["pred"]).max() / np.abs(vectors["pred"]).max()
        assert error < 1e-4

    def test_survives_saving(self, checkpoint, tmp_path):
        genes = [f"G{i}" for i in range(50)]
        model = hggep.HGGEP.from_published(checkpoint, genes=genes)
        model.save(tmp_path / "p.hggep")
        assert hggep.HGGEP.load(tmp_path / "p.hggep", device="cpu").id == model.id

    def test_wrong_genes(self, checkpoint):
        with pytest.raises(ValueError, match="50 genes"):
            hggep.HGGEP.from_published(checkpoint, genes=["A", "B"])

    def test_foreign_checkpoint(self, tmp_path):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth is not a checkpoint"):
            hggep.HGGEP.from_published(tmp_path / "other.pth", genes=["A"])

    def test_missing_entries(self, checkpoint, tmp_path):
        state = torch.load(checkpoint, weights_only=True)
        del state["hgnn.conv1.lin.weight"]
        torch.save(state, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=r"hgnn\.conv1\.lin\.weight"):
            hggep.HGGEP.from_published(tmp_path / "part.pth", genes=[f"G{i}" for i in range(50)])
