"""The main job on real tissue, shortened; benchmarks/accuracy.py and shuffled.py hold the full figures."""

import numpy as np
import pytest

import hggep_sc as hggep
from helpers import as_spatialdata
from hggep_sc.methods.genes import training_genes
from hggep_sc.section import open_sections

SHORT = {
    "fields_um": (240.0,),
    "fields_px": (336.0,),
    "patch_size": 64,
    "chunk_spots": 100,
    "epochs": 10,
    "ensemble": 1,
}


@pytest.fixture(scope="module")
def her2st(shared):
    kept = hggep.settings.dataset_dir
    hggep.settings.dataset_dir = shared / "data"
    yield hggep.datasets.her2st(["C2", "C3", "C4"])
    hggep.settings.dataset_dir = kept


@pytest.fixture(scope="module")
def panel(shared):
    return (shared / "reference" / "her2st_785_genes.txt").read_text().split()


def train(sections, panel, shared):
    return hggep.tl.fit(
        sections,
        genes=panel,
        normalize="panel",
        weights=shared / "weights" / "shufflenetv2_x0_5_trunk.pth",
        config=SHORT,
        device="cpu",
        progress=False,
    )


@pytest.fixture(scope="module")
def model(her2st, panel, shared):
    return train({name: her2st[name] for name in ("C2", "C4")}, panel, shared)


@pytest.mark.slow
def test_genes_that_are_chosen_are_those_of_the_tissue(her2st):
    """By Moran's I, the genes that the paper shows; the largest dispersion is that of genes with hardly any count."""
    training = open_sections({name: her2st[name] for name in ("C2", "C4")})
    genes, _ = training_genes(training, 785)
    assert {"FASN", "GNAS", "ERBB2"} <= set(genes)
    by_dispersion, _ = training_genes(training, 785, "dispersion")
    counts = [np.median(np.asarray(training[0].counts(names).mean(axis=0))) for names in (genes, by_dispersion)]
    assert counts[0] > 1 > counts[1]


@pytest.mark.slow
def test_predicts_a_held_out_section(her2st, model):
    test = her2st["C3"].copy()
    hggep.tl.predict(test, model, device="cpu")
    assert list(test.uns["hggep"]["sections"]["role"]) == ["held out"]
    assert hggep.tl.evaluate(test)["pcc"].mean() > 0.12


@pytest.mark.slow
def test_patches_carry_the_signal(her2st, panel, shared):
    """Patches and counts paired at random in training: nothing is left to predict."""
    rng = np.random.default_rng(0)
    shuffled = {name: her2st[name].copy() for name in ("C2", "C4")}
    for section in shuffled.values():
        section.X = section.X[rng.permutation(section.n_obs)]
    test = her2st["C3"].copy()
    hggep.tl.predict(test, train(shuffled, panel, shared), device="cpu")
    assert abs(hggep.tl.evaluate(test)["pcc"].mean()) < 0.06


@pytest.mark.slow
def test_spatialdata_gives_the_same(her2st, model, panel):
    """Shuffled table, scaled coordinate system."""
    test = her2st["C3"][:, panel].copy()
    sdata = as_spatialdata(test)
    hggep.tl.predict(test, model, device="cpu")
    mpp = test.uns["spatial"]["C3"]["scalefactors"]["microns_per_pixel"]
    hggep.tl.predict(sdata, model, mpp=mpp, device="cpu")
    table = sdata["table"]
    assert table.obs_names.tolist() != test.obs_names.tolist()
    assert np.abs(table[test.obs_names].layers["hggep"] - test.layers["hggep"]).max() < 1e-5
