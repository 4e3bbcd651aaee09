"""Predictions written into a table, and read back."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from helpers import GENES, assert_same, make_adata
from hggep_sc.section import (
    copy_of,
    open_sections,
    read_prediction,
    require_free,
    require_key,
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


def test_refused_predictions_leave_no_trace(monkeypatch, warned) -> None:
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
    assert "1 of the 2 predicted genes are not in var_names and are left out: 'KRT5'" in warned.text


def test_what_can_be_written_is_known_beforehand(tmp_path, monkeypatch, warned) -> None:
    adata = make_adata()
    require_writable(adata, ["GNAS", "KRT5"], key="hggep")
    assert not warned.messages  # said once, on writing
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


# --- what is not ours


def written(adata, genes=("MUC1", "GNAS"), **how):
    sections = open_sections(adata)
    predictions = predictions_for(sections, len(genes))
    write_prediction(adata, sections, predictions, **{"genes": list(genes), "key": "hggep", "params": PARAMS, **how})


MINE = {
    "layers": ("hggep", np.ones((30, 5))),
    "uns": ("hggep", {"mine": 1}),
    "var": ("hggep_predicted", np.arange(5)),
    "var of confidence": ("hggep_reliability", np.arange(5)),
    "obs": ("hggep_uncertainty", np.arange(30)),
    "obsm": ("X_hggep", np.ones((30, 2))),
}


@pytest.mark.parametrize("slot", MINE)
def test_what_the_user_has_there_is_replaced_on_request_alone(slot, warned) -> None:
    adata = make_adata()
    (attribute, *_), (name, value) = slot.split(), MINE[slot]
    getattr(adata, attribute)[name] = value
    before = adata.copy()
    where = f"{attribute}['{name}']"
    with pytest.raises(ValueError) as raised:
        written(adata)
    assert str(raised.value) == (
        f"key_added= would replace {where}, which is no earlier result of this function: choose another key_added=, or "
        "pass overwrite=True to lose what is there"
    )
    assert_same(adata, before)
    written(adata, overwrite=True)
    assert f"replaced, as overwrite=True says: {where}" in warned.text
    assert read_prediction(adata, "hggep")[1].tolist() == [0, 4]
    warned.clear()
    written(adata)  # which is ours now
    assert "replaced" not in warned.text


def test_all_slots_in_the_way_are_named() -> None:
    adata = make_adata()
    for slot, (name, value) in MINE.items():
        getattr(adata, slot.split()[0])[name] = value
    with pytest.raises(ValueError, match=r"would replace layers.*uns.*predicted.*reliability.*uncertainty.*X_hggep"):
        written(adata)


def test_columns_of_the_users_beside_an_earlier_prediction_stay() -> None:
    """The prediction had no confidence, and was not evaluated: these columns are not of it."""
    adata = make_adata()
    written(adata)
    adata.var["hggep_pcc"] = 0.5
    written(adata)
    assert adata.var["hggep_pcc"].eq(0.5).all()
    adata.obs["hggep_uncertainty"] = 0.5
    with pytest.raises(ValueError, match=r"would replace obs\['hggep_uncertainty'\], which is no earlier"):
        written(adata)


def test_predictions_of_before_slots_were_noted_are_ours() -> None:
    adata = make_adata()
    written(adata, reliability=np.ones(2), uncertainties=[np.ones(30)])
    del adata.uns["hggep"]["slots"]
    written(adata)
    assert "hggep_reliability" not in adata.var


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("key", ["spatial", "spatialdata_attrs", "hggep_slide", "X", "counts", "uni"])
def test_what_the_object_or_the_call_cannot_do_without_is_never_replaced(key, overwrite) -> None:
    adata = make_adata()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_uni"] = np.ones((30, 8))
    before = adata.copy()
    reads = [("layers", "counts"), ("obsm", "X_uni")]
    with pytest.raises(ValueError, match="cannot do without: choose another key_added="):
        written(adata, key=key, overwrite=overwrite, reads=reads)
    assert_same(adata, before)


@pytest.mark.parametrize("column", ["in_tissue", "array_row", "array_col", "region", "instance_id"])
def test_columns_that_the_object_cannot_do_without(column) -> None:
    adata = make_adata()
    adata.uns["spatialdata_attrs"] = {"region": "spots", "region_key": "region", "instance_key": "instance_id"}
    with pytest.raises(ValueError, match="cannot do without"):
        require_free(adata, [("obs", column)], owned=[("obs", column)], overwrite=True)


@pytest.mark.parametrize("key", ["", "a/b", 5, None, "a b", ["a"], "a\n"])
def test_keys_that_are_no_names(key) -> None:
    with pytest.raises(ValueError, match=r"^key_added=.*: the result's key must be letters, digits"):
        require_key(key)


@pytest.mark.parametrize("key", [".", "..", ".zattrs", "zarr.json", "a" * 201])
def test_keys_that_zarr_cannot_hold(key) -> None:
    with pytest.raises(ValueError, match=r"^key_added=.*zarr files cannot hold"):
        require_key(key)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda table: table.var.__setitem__("p_predicted", table.var["p_predicted"].astype(str)),
            TypeError,
            r"var\['p_predicted'\] holds values of type object",
        ),
        (lambda table: table.var.__setitem__("p_predicted", False), ValueError, "none of the object's .* genes"),
        (
            lambda table: table.layers.update(p=csr_matrix(np.nan_to_num(table.layers["p"]))),
            TypeError,
            r"layers\['p'\] is csr_matrix of float32",
        ),
        (
            lambda table: table.layers.update(p=table.layers["p"].astype(str)),
            TypeError,
            r"layers\['p'\] is ndarray of <U",
        ),
    ],
)
def test_a_prediction_that_is_not_as_it_was_written(damage, error, message) -> None:
    adata = make_adata()
    sections = open_sections(adata)
    write_prediction(adata, sections, predictions_for(sections, 2), genes=list(GENES[:2]), key="p", params=PARAMS)
    read_prediction(adata, "p")
    damage(adata)
    with pytest.raises(error, match=message):
        read_prediction(adata, "p")


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_a_prediction_read_from_a_file_is_ours(tmp_path, form) -> None:
    adata = make_adata()
    written(adata)
    getattr(adata, f"write_{form}")(tmp_path / "a")
    back = (ad.read_h5ad if form == "h5ad" else ad.read_zarr)(tmp_path / "a")
    written(back, genes=["CD74"])
    assert back.var["hggep_predicted"].tolist() == [False, False, True, False, False]
    back.obs["hggep_uncertainty"] = 1.0
    with pytest.raises(ValueError, match="hggep_uncertainty"):
        written(back)
