"""Predictions written into a table, and read back."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from helpers import GENES, make_adata
from hggep_sc.section import (
    copy_of,
    open_sections,
    read_prediction,
    require_writable,
    write_prediction,
)


def two_libraries() -> ad.AnnData:
    a, b = make_adata(library="A", seed=1), make_adata(library="B", seed=2)
    both = ad.concat([a, b], uns_merge="unique")
    both.obs["slide"] = pd.Categorical(["A"] * a.n_obs + ["B"] * b.n_obs)
    return both[np.random.default_rng(0).permutation(both.n_obs)].copy()


def predictions_for(sections, n_genes, seed=3):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(len(s.obs_rows), n_genes)).astype(np.float32),
            rng.normal(size=(len(s.obs_rows), 4)),
        )
        for s in sections
    ]


PARAMS = {
    "hggep_sc": "0.1",
    "sections": {"name": ["A"]},
    "mpp": 0.5,
    "seed": 0,
    "genes": ["MUC1", "GNAS"],
    "scale": {"total": 1e4, "log": True},
}


def test_prediction_is_written_by_name_and_row() -> None:
    adata = two_libraries()
    adata.obs["in_tissue"] = np.arange(60) % 4 > 0
    adata.layers["other"] = adata.X.copy()
    before = adata.copy()
    sections = open_sections(adata, library_key="slide")
    genes = ["MUC1", "GNAS"]
    predictions = predictions_for(sections, 2)
    write_prediction(adata, sections, predictions, genes=genes, key="hggep", params=PARAMS)

    layer = adata.layers["hggep"]
    assert layer.dtype == np.float32
    assert adata.obsm["X_hggep"].dtype == np.float32
    assert adata.var["hggep_predicted"].tolist() == [True, False, False, False, True]
    for section, (expression, latent) in zip(sections, predictions, strict=True):
        for j, gene in enumerate(genes):
            np.testing.assert_array_equal(layer[section.obs_rows, adata.var_names.get_loc(gene)], expression[:, j])
        np.testing.assert_array_equal(adata.obsm["X_hggep"][section.obs_rows], latent.astype(np.float32))
    outside = np.arange(60) % 4 == 0
    assert np.isnan(layer[outside]).all()
    assert np.isnan(adata.obsm["X_hggep"][outside]).all()
    assert np.isnan(layer[:, 1:4]).all()
    assert adata.uns["hggep"]["scale"] == {"total": 1e4, "log": True}
    # nothing else is touched
    assert (adata.X != before.X).nnz == 0
    assert set(adata.layers) == {"other", "hggep"}
    assert list(adata.obs) == list(before.obs)
    # the result slot is replaced
    write_prediction(adata, sections, predictions_for(sections, 1), genes=["CD74"], key="hggep", params={"seed": 1})
    assert adata.var["hggep_predicted"].tolist() == [False, False, True, False, False]
    assert adata.uns["hggep"]["seed"] == 1
    assert "mpp" not in adata.uns["hggep"]


@pytest.mark.parametrize("case", ["in order", "other order", "a gene more", "a gene less", "two sections"])
def test_a_prediction_in_the_tables_order_is_not_copied(case) -> None:
    adata = two_libraries() if case == "two sections" else make_adata()
    names = adata.var_names.tolist()
    genes = {"other order": names[::-1], "a gene more": [*names, "NEW"], "a gene less": names[:-1]}.get(case, names)
    sections = open_sections(adata, library_key="slide" if case == "two sections" else None)
    predictions = predictions_for(sections, len(genes))
    write_prediction(adata, sections, predictions, genes=genes, key="hggep", params={})
    layer = adata.layers["hggep"]
    for section, (expression, _) in zip(sections, predictions, strict=True):
        expected = pd.DataFrame(expression, columns=genes).reindex(columns=names).to_numpy()
        np.testing.assert_array_equal(layer[section.obs_rows], expected)
        assert np.shares_memory(layer, expression) == (case == "in order")


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_is_written_survives_files(tmp_path, form) -> None:
    adata = make_adata()
    sections = open_sections(adata)
    write_prediction(adata, sections, predictions_for(sections, 2), genes=["MUC1", "GNAS"], key="hggep", params=PARAMS)
    path = tmp_path / f"a.{form}"
    getattr(adata, f"write_{form}")(path)
    back = (ad.read_h5ad if form == "h5ad" else ad.read_zarr)(path)
    np.testing.assert_array_equal(back.layers["hggep"], adata.layers["hggep"])
    np.testing.assert_array_equal(back.obsm["X_hggep"], adata.obsm["X_hggep"])
    np.testing.assert_array_equal(back.var["hggep_predicted"], adata.var["hggep_predicted"])
    assert list(back.uns["hggep"]["genes"]) == PARAMS["genes"]
    assert back.uns["hggep"]["scale"]["total"] == 1e4
    (again,) = open_sections(back)
    np.testing.assert_array_equal(again.xy, sections[0].xy)
    assert again.mpp == sections[0].mpp
    with again.open_image() as image, sections[0].open_image() as before:
        how = {"field": 9, "size": 9}
        np.testing.assert_array_equal(image.read_patches(again.xy, **how), before.read_patches(again.xy, **how))


def test_writing_to_views_and_backed_objects(tmp_path) -> None:
    adata = make_adata()
    adata.write_h5ad(tmp_path / "a.h5ad")
    view = adata[5:15]
    sections = open_sections(view)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        write_prediction(view, sections, predictions_for(sections, 5), genes=GENES, key="hggep", params={})
    assert np.isfinite(view.layers["hggep"]).all()
    assert "hggep" not in adata.layers

    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    sections = open_sections(backed)
    write_prediction(backed, sections, predictions_for(sections, 5), genes=GENES, key="hggep", params={})
    assert backed.isbacked
    assert np.isfinite(backed.layers["hggep"]).all()
    view = backed[5:15]
    sections = open_sections(view)
    with pytest.raises(ValueError, match=r"view of a backed AnnData.*to_memory"):
        write_prediction(view, sections, predictions_for(sections, 5), genes=GENES, key="again", params={})
    backed.file.close()


def test_refused_predictions_leave_no_trace(monkeypatch, caplog) -> None:
    adata = make_adata()
    sections = open_sections(adata)
    good = {"genes": ["MUC1", "GNAS"], "key": "hggep", "params": {}}
    predictions = predictions_for(sections, 2)

    def refuse(error, match, *, predictions=predictions, **changed) -> None:
        with pytest.raises(error, match=match):
            write_prediction(adata, sections, predictions, **{**good, **changed})
        assert not adata.layers
        assert list(adata.var) == []
        assert list(adata.obsm) == ["spatial"]
        assert list(adata.uns) == ["spatial"]

    refuse(ValueError, "no gene in common.*Ensembl", genes=["ENSG00000087460", "ENSG00000169710"])
    refuse(ValueError, "more than once: 'GNAS'", genes=["GNAS", "GNAS"])
    refuse(ValueError, "letters, digits", key="a/b")
    refuse(TypeError, r"uns\['hggep'\]\['model'\] is of type object", params={"model": object()})
    refuse(TypeError, "keys must be str", params={"scale": {1: 2}})
    refuse(ValueError, "shape \\(30, 2\\) is expected", predictions=[(predictions[0][0][:-1], predictions[0][1])])
    refuse(ValueError, "one prediction per section", predictions=predictions * 2)

    class Little:
        available = 100

    monkeypatch.setattr("psutil.virtual_memory", Little)
    refuse(ValueError, r"a layer of 30 x 5 needs .* `adata = adata\[:, model\.genes\]")
    monkeypatch.undo()
    write_prediction(adata, sections, predictions, **{**good, "genes": ["GNAS", "KRT5"]})
    assert "1 of the 2 predicted genes are not in var_names and are left out: 'KRT5'" in caplog.text


def test_what_can_be_written_is_known_beforehand(tmp_path, monkeypatch, caplog) -> None:
    adata = make_adata()
    require_writable(adata, ["GNAS", "KRT5"], key="hggep")
    assert not caplog.records  # said once, on writing
    with pytest.raises(ValueError, match="no gene in common"):
        require_writable(adata, ["KRT5"], key="hggep")
    with pytest.raises(ValueError, match="letters, digits"):
        require_writable(adata, GENES, key="a/b")
    with pytest.raises(TypeError, match="found list"):
        require_writable([adata], GENES, key="hggep")
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    require_writable(backed, GENES, key="hggep")
    with pytest.raises(ValueError, match="view of a backed"):
        require_writable(backed[5:15], GENES, key="hggep")
    backed.file.close()

    class Little:
        available = 100

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(ValueError, match="a layer of 30 x 5 needs"):
        require_writable(adata, GENES, key="hggep")


def test_prediction_is_read_back() -> None:
    adata = make_adata()
    with pytest.raises(KeyError, match=r"run hggep_sc\.tl\.predict first.*Layers here: none"):
        read_prediction(adata, "hggep")
    sections = open_sections(adata)
    write_prediction(adata, sections, predictions_for(sections, 2), genes=["MUC1", "GNAS"], key="hggep", params=PARAMS)
    record, columns = read_prediction(adata, "hggep")
    assert record["mpp"] == 0.5
    assert columns.tolist() == [0, 4]
    record["metrics"] = 1
    assert "metrics" not in adata.uns["hggep"]
    with pytest.raises(KeyError, match=r"no prediction 'other'.*Layers here: 'hggep'"):
        read_prediction(adata, "other")
    for spoil, slot in (
        (lambda data: data.layers.pop("hggep"), "layers"),
        (lambda data: data.uns.pop("hggep"), "uns"),
        (lambda data: data.uns.update(hggep="mine"), "uns"),
        (lambda data: data.var.pop("hggep_predicted"), "var"),
    ):
        spoiled = adata.copy()
        spoil(spoiled)
        with pytest.raises(KeyError, match=rf"{slot}\['hggep(_predicted)?'\] missing; run hggep_sc"):
            read_prediction(spoiled, "hggep")


def test_copies_are_apart(tmp_path) -> None:
    adata = make_adata()
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    some = np.array([4, 2, 9])
    for data, rows in (
        (adata, slice(None)),
        (adata[some], some),
        (backed, slice(None)),
        (backed[some], some),
    ):
        twin = copy_of(data)
        assert not twin.isbacked
        assert not twin.is_view
        np.testing.assert_array_equal(twin.X.toarray(), adata.X[rows].toarray())
        twin.layers["hggep"] = np.zeros(twin.shape)
        twin.uns["spatial"]["A"]["metadata"]["technology"] = "changed"
        assert not data.layers
        assert data.uns["spatial"]["A"]["metadata"]["technology"] == "ST"
    backed.file.close()
    with pytest.raises(TypeError, match="found list"):
        copy_of([adata])
