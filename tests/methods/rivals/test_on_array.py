"""What holds for all rivals that see a section as a whole, on small networks."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import CPU, TINY_RIVALS, as_spatialdata
from hggep_sc import methods, tl
from hggep_sc.errors import InputError, MissingSlotError, ModelError
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections

SIDE, PITCH, N_GENES = 6, 20, 6
HOW = {"device": "cpu", "progress": False}

rivals = pytest.mark.parametrize("name", TINY_RIVALS)


def fitted(name, sections, genes=8, seed=0, **settings):
    method = methods.get(name)
    config = method.configured_by(**{**TINY_RIVALS[name], **settings})
    return method.fit(open_sections(sections), config, genes=genes, seed=seed, **HOW)


def predicted(model, adata, **how):
    return model.predict(open_sections({"test": adata})[0], device="cpu", **how)[0]


@pytest.fixture(scope="module")
def models(_synthetic):
    return {name: fitted(name, {key: _synthetic[key].copy() for key in ("S1", "S2")}) for name in TINY_RIVALS}


# ---- learning -----------------------------------------------------------------------------------------------


def wavy(seed):
    """A section whose colour and counts follow one smooth wave, of a direction and phase of its own."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIDE * PITCH, : SIDE * PITCH] / PITCH
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(1.2 * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
    image = np.stack([130 + 90 * wave, 130 - 60 * wave, np.full_like(wave, 120)], axis=-1)
    image += rng.normal(0, 6, image.shape)
    y, x = (PITCH * np.mgrid[:SIDE, :SIDE] + PITCH // 2).reshape(2, -1)
    counts = rng.poisson(20 * np.exp(np.linspace(-1.5, 1.5, N_GENES) * wave[y, x][:, None])).astype(np.float32)
    adata = ad.AnnData(counts, var=pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]))
    adata.obs_names = [f"{seed}-{i}" for i in range(len(counts))]
    adata.obs["array_col"], adata.obs["array_row"] = x // PITCH, y // PITCH
    adata.obsm["spatial"] = np.column_stack([x, y]).astype(float)
    adata.uns["spatial"] = {
        "wave": {
            "images": {"full": image.clip(0, 255).astype(np.uint8)},
            "scalefactors": {"tissue_full_scalef": 1.0},
            "metadata": {"technology": "ST"},
        }
    }
    return adata


LEARNING = {
    "histogene": {"epochs": 15, "learning_rate": 3e-3, "width": 32},
    "hist2st": {"epochs": 20, "learning_rate": 5e-3, "channels": 16, "count_weight": 0.0},
    "thitogene": {"epochs": 40, "learning_rate": 5e-3, "n_capsules": 8, "capsule_width": 8},
}


@rivals
@pytest.mark.filterwarnings("ignore:.*smallest field of view:hggep_sc.errors.ImageWarning")
def test_learns_what_the_image_shows(name):
    *training, test = (wavy(seed) for seed in range(9))
    how = {"dropout": 0.0, "fields_um": None, "fields_px": (float(PITCH),), **LEARNING[name]}
    model = fitted(name, {str(seed): adata for seed, adata in enumerate(training)}, genes=None, **how)

    def learnt(adata):
        section = open_sections({"s": adata})[0]
        counts = section.counts(model.genes)
        return model.scale.transform(counts, model.scale.totals(counts, section.library()))

    truth, mean = learnt(test), np.mean([learnt(adata).mean(0) for adata in training], axis=0)
    expression = predicted(model, test)
    assert np.nanmean(pearson(expression, truth)) > 0.5
    assert np.square(expression - truth).mean() < 0.7 * np.square(mean - truth).mean()
    shuffled = test.copy()
    shuffled.obsm["spatial"] = np.random.default_rng(0).permutation(test.obsm["spatial"])
    assert np.nanmean(pearson(predicted(model, shuffled), truth)) < 0.35


# ---- sections of any kind -----------------------------------------------------------------------------------


@rivals
def test_one_spot_and_an_isolated_one(name, models, sections):
    assert predicted(models[name], sections["S3"][:1].copy()).shape == (1, 8)  # which is found to be finite
    alone = sections["S3"].copy()
    alone.obs.loc[alone.obs_names[0], ["array_col", "array_row"]] = 60
    assert predicted(models[name], alone).shape == (40, 8)


@rivals
def test_learns_from_one_spot_and_an_isolated_one(name, sections):
    sections["S1"].obs.loc[sections["S1"].obs_names[0], ["array_col", "array_row"]] = 60
    model = fitted(
        name, {"S1": sections["S1"], "S2": sections["S2"][:1].copy()}, genes=list(sections["S1"].var_names[:8])
    )
    assert all(value.isfinite().all() for value in model.network.state_dict().values())


@rivals
def test_a_section_larger_than_a_chunk(name, models, sections):
    whole = predicted(models[name], sections["S3"])
    np.testing.assert_array_equal(predicted(models[name], sections["S3"], chunk_spots=40), whole)
    chunked = predicted(models[name], sections["S3"], chunk_spots=12)
    assert chunked.shape == whole.shape
    assert not np.array_equal(chunked, whole)
    assert fitted(name, {"S1": sections["S1"]}, chunk_spots=12).config.chunk_spots == 12


@rivals
def test_tables_are_as_large_as_the_training_sections_need(name, sections, tmp_path):
    assert fitted(name, {"S1": sections["S1"]}).config.n_positions == 64
    for section in sections.values():
        section.obs["array_col"] += 100  # as of Visium
    model = fitted(name, {"S1": sections["S1"]})
    rows = 1 + max(sections["S1"].obs["array_col"])
    assert model.config.n_positions == len(model.network.x_embed.weight) == len(model.network.y_embed.weight) == rows
    expression = predicted(model, sections["S1"])
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(predicted(methods.get(name).load(tmp_path / "m"), sections["S1"]), expression)


@rivals
def test_places_that_a_model_does_not_know(name, models, sections):
    sections["S3"].obs["array_col"] += 60
    with pytest.raises(InputError, match=rf'obs\["array_col"\].*0 to 63 alone: fit one with method=\'{name}\''):
        predicted(models[name], sections["S3"])
    sections["S3"].obs["array_col"] -= 200
    with pytest.raises(InputError, match=r"hold -\d+ to"):
        fitted(name, {"S3": sections["S3"]})
    del sections["S3"].obs["array_row"]
    with pytest.raises(MissingSlotError, match="array_row"):
        predicted(models[name], sections["S3"])
    with pytest.raises(MissingSlotError, match="array_row"):
        fitted(name, {"S3": sections["S3"]})


def test_places_beyond_any_table(sections):
    sections["S1"].obs["array_col"] += 2**17
    with pytest.raises(InputError, match="0 to 65535 alone"):
        fitted("histogene", {"S1": sections["S1"]})


def test_spatialdata(sections):
    method = {"method": "histogene", "config": TINY_RIVALS["histogene"], "genes": 8}
    model = tl.fit({name: as_spatialdata(sections[name]) for name in ("S1", "S2")}, **method, **CPU)
    sdata = as_spatialdata(sections["S3"])
    tl.predict(sdata, model, key_added="it", device="cpu", progress=False)
    table = sdata.tables["table"]
    order = sections["S3"].obs_names.get_indexer(table.obs["instance"])
    found = table[:, model.genes].layers["it"]
    np.testing.assert_allclose(found, predicted(model, sections["S3"])[order], rtol=1e-5, atol=1e-5)


def test_a_resumed_fit_keeps_its_learning_rate(sections, tmp_path, monkeypatch):
    """That of Hist2ST falls by steps."""
    from hggep_sc.methods.rivals.hist2st import Hist2STNetwork

    settings = {"epochs": 3, "decay": 0.1, "decay_epochs": 1, "learning_rate": 1e-2}
    method, opened = methods.get("hist2st"), open_sections({"S1": sections["S1"]})
    config = method.configured_by(**{**TINY_RIVALS["hist2st"], **settings})
    whole = method.fit(opened, config, genes=8, **HOW)
    constant = method.fit(opened, config.replace(decay=1.0), genes=8, **HOW)
    assert whole.id != constant.id
    loss, steps = Hist2STNetwork.loss, []

    def interrupted(self, batch, generator):
        steps.append(batch)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss(self, batch, generator)

    monkeypatch.setattr(Hist2STNetwork, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        method.fit(opened, config, genes=8, checkpoint_dir=tmp_path / "fit", **HOW)
    resumed = method.fit(opened, config, genes=8, checkpoint_dir=tmp_path / "fit", resume=True, **HOW)
    assert resumed.id == whole.id


# ---- published checkpoints ----------------------------------------------------------------------------------

PUBLISHED = {  # small, but for what no shape tells: heads of 64, patches of 112 px
    "histogene": {"patch_size": 28, "fields_px": (28.0,), "width": 16, "hidden": 24, "vit_depth": 2},
    "hist2st": {"patch_size": 28, "fields_px": (28.0,), "channels": 8, "kernel": 3, "vit_depth": 1, "graph_depth": 3},
    "thitogene": {"channels": (4, 4, 8, 8, 16), "n_capsules": 4, "capsule_width": 4, "vit_depth": 1, "hidden": 24}
    | {"gat_heads": 2, "gat_width": 8, "gat_out": 12, "gene_width": 20},
}


@pytest.fixture
def checkpoint(name):
    """Settings of a small network of the authors', and its state."""
    config = methods.get(name).configured_by(**PUBLISHED[name], vit_heads=2, n_positions=35)
    return config, methods.get(name).untrained(config, 5, None).state_dict()


GENES = [f"G{i}" for i in range(5)]


@rivals
@pytest.mark.parametrize("wrapped", [False, True])
def test_reads_a_published_checkpoint(name, wrapped, checkpoint, tmp_path):
    config, state = checkpoint
    torch.save({"state_dict": state, "epoch": 99} if wrapped else state, tmp_path / "c.ckpt")
    model = methods.get(name).from_published(tmp_path / "c.ckpt", genes=GENES)
    assert model.config == config
    assert (model.genes, model.seed) == (GENES, None)
    assert all(torch.equal(value, state[entry]) for entry, value in model.network.state_dict().items())


def test_reads_a_published_checkpoint_of_negative_binomials(tmp_path):
    method = methods.get("hist2st")
    config = method.configured_by(**PUBLISHED["hist2st"], count_loss="nb")
    torch.save(method.untrained(config, 5, None).state_dict(), tmp_path / "c.ckpt")
    assert method.from_published(tmp_path / "c.ckpt", genes=GENES).config.count_loss == "nb"


@rivals
def test_refuses_foreign_checkpoints(name, checkpoint, tmp_path):
    method, (_, state) = methods.get(name), checkpoint
    path = tmp_path / "c.ckpt"
    with pytest.raises(FileNotFoundError, match=r"c\.ckpt"):
        method.from_published(path, genes=GENES)
    torch.save(state, path)
    with pytest.raises(ValueError, match="predicts 5 genes, but genes= has 2 names"):
        method.from_published(path, genes=["A", "B"])
    for entry in ("x_embed.weight", "y_embed.weight"):  # that sizes are read from, and another
        torch.save({key: value for key, value in state.items() if key != entry}, path)
        with pytest.raises(ModelError, match=rf"(?s)c\.ckpt is not a checkpoint of the published code of .*{entry}"):
            method.from_published(path, genes=GENES)
    torch.save({**state, "x_embed.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="is not a checkpoint"):
        method.from_published(path, genes=GENES)
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(ModelError, match="entry 'gene_head"):
        method.from_published(path, genes=GENES)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a readable file"):
        method.from_published(path, genes=GENES)


@pytest.mark.parametrize("name", ["histogene"])
@pytest.mark.parametrize("other", ["hist2st", "thitogene"])
def test_refuses_those_of_another_method(name, other, checkpoint, tmp_path):
    torch.save(checkpoint[1], tmp_path / "c.ckpt")
    with pytest.raises(ModelError, match="is missing"):
        methods.get(other).from_published(tmp_path / "c.ckpt", genes=GENES)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("histogene", "width", 0),
        ("histogene", "dropout", 1.5),
        ("histogene", "n_positions", 2**16 + 1),
        ("hist2st", "kernel", 4),
        ("hist2st", "channels", 12),
        ("hist2st", "tile", 200),
        ("hist2st", "pooling", "sum"),
        ("hist2st", "count_loss", "poisson"),
        ("hist2st", "decay", -1.0),
    ],
)
def test_settings_that_cannot_be_are_refused(name, setting, value):
    with pytest.raises(ValueError, match=rf"config\.{setting}"):
        methods.get(name).configured_by(**{setting: value})
