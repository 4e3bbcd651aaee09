"""`tl.predict(measured=)`: what is written, what is refused, and that no other spot's counts matter."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import hggep_sc as hggep
from helpers import as_spatialdata, assert_same
from hggep_sc.evaluation.section_scores import predicted_part  # by which tl.cross_validate(layers=) scores

MEASURED = np.arange(40) % 4 == 0


@pytest.fixture
def section(sections):
    adata = sections["S3"]
    adata.obs["seen"] = MEASURED
    return adata


@pytest.fixture(scope="module")
def fitted(_synthetic):
    """Fits a method to S1 and S2."""

    def fit(method, **how):
        training = {name: _synthetic[name].copy() for name in ("S1", "S2")}
        return hggep.tl.fit(training, method=method, genes=20, weights=None, progress=False, **how)

    return fit


@pytest.fixture(scope="module")
def ridge(fitted):
    return fitted("ridge")


def predict(data, model, **keywords):
    return hggep.tl.predict(data, model, device="cpu", progress=False, **{"measured": "seen", **keywords})


def written(adata, key="hggep"):
    return adata.layers[key], adata.obs[f"{key}_uncertainty"].to_numpy()


def test_slots(section, trained):
    plain = predict(section, trained, measured=None, copy=True)
    predict(section, trained)
    known = section.var["hggep_predicted"]
    assert np.isfinite(section.layers["hggep"][:, known]).all()
    assert np.isnan(section.layers["hggep"][:, ~known]).all()
    assert not np.array_equal(section.layers["hggep"][:, known], plain.layers["hggep"][:, known])
    assert np.array_equal(section.obsm["X_hggep"], plain.obsm["X_hggep"])
    assert section.obs["hggep_measured"].dtype == bool
    assert np.array_equal(section.obs["hggep_measured"], MEASURED)
    assert list(section.uns["hggep"]["measured"]) == list(section.obs_names[MEASURED])
    assert "obs['hggep_measured']" in section.uns["hggep"]["slots"]
    uncertainty = section.obs["hggep_uncertainty"]
    assert uncertainty[MEASURED].mean() < uncertainty[~MEASURED].mean()


@pytest.mark.parametrize("what", ["zero", "garbage", "NaN"])
@pytest.mark.parametrize("normalize", ["library", "panel"])
def test_other_spots_counts_do_not_matter(section, fitted, normalize, what):
    model = fitted("ridge", normalize=normalize)
    other = section.copy()
    counts = other.X.toarray()
    replaced = {"zero": 0, "garbage": np.random.default_rng(0).integers(0, 99, counts.shape), "NaN": np.nan}[what]
    other.X = np.where(MEASURED[:, None], counts, replaced)
    predict(section, model)
    predict(other, model)
    for a, b in zip(written(section), written(other), strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    changed = section.copy()
    changed.X = np.where(MEASURED[:, None], counts[::-1], counts)  # theirs do
    predict(changed, model)
    assert not np.array_equal(changed.layers["hggep"], section.layers["hggep"], equal_nan=True)


def test_column_mask_list_and_series_are_alike(section, ridge):
    predict(section, ridge)
    series = section.obs["seen"].iloc[::-1]
    for given in (MEASURED, list(map(bool, MEASURED)), series, series.astype("boolean")):
        other = predict(section, ridge, measured=given, copy=True)
        assert np.array_equal(other.layers["hggep"], section.layers["hggep"], equal_nan=True)


@pytest.mark.parametrize("method", ["gene_mean", "nearest_patches", "low_rank_ridge"])
def test_any_method(section, fitted, method):
    predict(section, fitted(method))
    assert np.isfinite(hggep.get.prediction(section).X).all()
    assert "hggep_uncertainty" in section.obs


def test_evaluate_leaves_them_out(section, ridge):
    predict(section, ridge)
    table = hggep.tl.evaluate(section)
    assert section.uns["hggep"]["metrics"]["n_spots"] == 30
    changed = section.copy()
    changed.layers["hggep"][MEASURED] = 7.0
    assert hggep.tl.evaluate(changed)["pcc"].equals(table["pcc"])
    changed.obs_names = [f"other-{name}" for name in changed.obs_names]
    assert hggep.tl.evaluate(changed)["pcc"].equals(table["pcc"])
    del changed.obs["hggep_measured"]
    with pytest.raises(KeyError, match=r"10 spots, which would be scored against themselves: obs\['hggep_measured'\]"):
        hggep.tl.evaluate(changed)


def test_evaluate_of_measured_spots_alone(section, ridge):
    predict(section, ridge)
    with pytest.raises(
        ValueError, match="every predicted spot that is left corrected the prediction by its own counts"
    ):
        hggep.tl.evaluate(section[MEASURED].copy())


def test_plots_leave_them_out(section, ridge):
    predict(section, ridge)
    gene = ridge.genes[0]
    ax = hggep.pl.gene_scatter(section, gene=gene)
    assert len(ax.collections[0].get_offsets()) == 30
    title = hggep.pl.gene_map(section, genes=[gene])[1].get_title()
    assert title.endswith(ax.get_title().split(", ")[1])


def test_a_plain_prediction_takes_its_place(section, ridge):
    predict(section, ridge)
    predict(section, ridge, measured=None)
    assert "hggep_measured" not in section.obs
    assert "hggep_uncertainty" not in section.obs
    assert "measured" not in section.uns["hggep"]
    hggep.tl.evaluate(section)
    assert section.uns["hggep"]["metrics"]["n_spots"] == 40


def test_survives_files(section, ridge, tmp_path):
    predict(section, ridge)
    section.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert hggep.tl.evaluate(read)["pcc"].equals(hggep.tl.evaluate(section)["pcc"])


def test_sections_of_one_object_each_by_their_own(sections, ridge):
    names = ("S2", "S3")
    both = ad.concat({n: sections[n] for n in names}, label="library", index_unique="-", uns_merge="unique")
    both.obs["seen"] = np.tile(MEASURED, 2)
    predict(both, ridge, library_key="library")
    for name in names:
        sections[name].obs["seen"] = MEASURED
        predict(sections[name], ridge)
        part = both.obs["library"] == name
        np.testing.assert_allclose(both.layers["hggep"][part], sections[name].layers["hggep"], atol=1e-5)
    assert len(both.uns["hggep"]["measured"]) == 20
    both.obs["seen"] &= both.obs["library"] == "S3"
    with pytest.raises(ValueError, match="at none of the 40 spots of section 'S2'"):
        predict(both, ridge, library_key="library")
    predict(both, ridge, library_key="library", library_id="S3")


def test_spatialdata(section, ridge):
    pytest.importorskip("spatialdata")
    sdata = as_spatialdata(section)
    predict(sdata, ridge)
    predict(section, ridge)
    table = sdata["table"]
    assert np.array_equal(table.obs["hggep_measured"], table.obs["seen"])
    np.testing.assert_allclose(
        table[section.obs_names].layers["hggep"], section.layers["hggep"], atol=0.02, equal_nan=True
    )
    hggep.tl.evaluate(sdata)
    assert table.uns["hggep"]["metrics"]["n_spots"] == 30


def test_genes_that_the_section_lacks(section, ridge, warned):
    there = section[:, [name for name in section.var_names if name not in ridge.genes[:3]]].copy()
    predict(there, ridge)
    assert "3 of the 20 predicted genes are not in var_names" in warned.text
    assert np.isfinite(hggep.get.prediction(there).X).all()
    assert there.var["hggep_predicted"].sum() == 17


def test_measured_spots_without_any_count(section, ridge, warned):
    counts = section.X.toarray()
    counts[0] = 0
    section.X = counts
    predict(section, ridge)
    assert "1 of its 10 measured spots have no counts" in warned.text
    assert not section.obs["hggep_measured"].iloc[0]
    assert len(section.uns["hggep"]["measured"]) == 9


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("nowhere", KeyError, "measured='nowhere': obs has no such column"),
        ("number", TypeError, r"obs\['number'\] holds values of type int64"),
        ("gaps", TypeError, "some of which are missing"),
        (3, TypeError, "measured= must be the name of a boolean column of obs, or a mask.*found int"),
        (np.ones(40), TypeError, "found an array of float64"),
        (np.ones((40, 2), dtype=bool), TypeError, "measured= must be"),
        (np.ones(39, dtype=bool), ValueError, "39 values, and the object 40 spots"),
        (pd.Series(MEASURED), ValueError, "its index must hold each of obs_names once"),
        (np.ones(40, dtype=bool), ValueError, "True at all 40 spots of section 'S3': nothing is left to predict"),
        (np.zeros(40, dtype=bool), ValueError, "True at none of the 40 spots of section 'S3'"),
        (np.arange(40) < 4, ValueError, "4 of its 4 measured spots have counts, and measured= needs at least 5"),
    ],
)
def test_refused(section, ridge, given, error, message):
    section.obs["number"] = np.arange(40)
    section.obs["gaps"] = pd.array([None, *MEASURED[1:]], dtype="boolean")
    before = section.copy()
    with pytest.raises(error, match=message):
        predict(section, ridge, measured=given)
    assert_same(section, before)


@pytest.mark.parametrize("how", ["no X", "zeros", "no counts", "no layer"])
def test_measured_spots_without_counts(section, ridge, how):
    expected = {
        "no X": (KeyError, "has no counts: X is empty"),
        "zeros": (ValueError, "0 of its 10 measured spots have counts"),
        "no counts": (ValueError, "X holds non-integer values"),
        "no layer": (KeyError, "there is no layer 'raw'"),
    }
    if how == "no X":
        section.X = None
    elif how != "no layer":
        section.X = section.X.toarray() * (0 if how == "zeros" else 0.3)
    error, message = expected[how]
    with pytest.raises(error, match=message):
        predict(section, ridge, layer="raw" if how == "no layer" else None)
    assert "hggep" not in section.layers


def test_the_column_is_not_replaced(section, ridge):
    section.obs["hggep_measured"] = section.obs.pop("seen")
    with pytest.raises(ValueError, match=r"would replace obs\['hggep_measured'\].*cannot do without"):
        predict(section, ridge, measured="hggep_measured", overwrite=True)


def test_a_layer_of_it_is_scored_without_them(section, ridge):
    predict(section, ridge)
    hggep.tl.evaluate(section)
    hggep.tl.evaluate(section, layer="hggep", normalize="library", key="cmp")
    pd.testing.assert_series_equal(section.var["cmp_pcc"], section.var["hggep_pcc"], check_names=False)
    genes = section.var_names[section.var["hggep_predicted"]]
    spots, _, _ = predicted_part(section, np.arange(40), list(genes), "hggep")
    assert np.array_equal(spots, ~MEASURED)
    del section.obs["hggep_measured"]
    with pytest.raises(KeyError, match="hggep_measured"):
        hggep.tl.evaluate(section, layer="hggep", key="cmp")
