import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from scipy import sparse

import hggep_sc as hggep
from helpers import make_adata
from hggep_sc.section import open_sections, write_prediction


def test_ready_for_scanpy(sections, trained):
    section = sections["S3"]
    section.obsm["table"] = section.obs[["array_col"]].copy()
    hggep.tl.predict(section, trained, device="cpu", progress=False)
    genes = hggep.get.prediction(section)
    assert genes.shape == (40, 20)
    assert set(genes.var_names) == set(trained.genes)
    assert np.array_equal(genes.X, section[:, genes.var_names].layers["hggep"])
    assert genes.obs["region"].equals(section.obs["region"])
    assert {"spatial", "X_hggep"} <= set(genes.obsm)
    sc.pp.pca(genes, n_comps=3)
    assert np.isfinite(genes.obsm["X_pca"]).all()
    genes.X[:] = 0
    genes.obsm["spatial"][:] = 0
    assert np.nanmax(section.layers["hggep"]) > 0
    assert section.obsm["spatial"].max() > 0
    genes.uns["spatial"]["S3"]["scalefactors"].clear()
    assert section.uns["spatial"]["S3"]["scalefactors"]


@pytest.fixture
def predicted():
    """30 spots with a prediction of three of five genes, all but two of the spots."""
    adata = make_adata()
    sections = open_sections(adata)
    values = np.random.default_rng(0).uniform(1, 3, (30, 3)).astype("f4")
    params = {"normalize": "library", "target_sum": 1000.0, "log_base": "10"}
    write_prediction(adata, sections, [(values, None)], genes=["CD74", "GNAS", "MUC1"], key="hggep", params=params)
    adata.layers["hggep"][[4, 20]] = np.nan
    adata.obs["group"] = pd.Categorical(["alone"] * 5 + ["a"] * 10 + ["b"] * 15)
    return adata


def test_graphs_of_places_come_along_with_their_record(predicted) -> None:
    sq.gr.spatial_neighbors(predicted, coord_type="grid", n_neighs=4)
    sq.gr.spatial_neighbors(predicted, coord_type="generic", radius=35.0, key_added="near")
    genes = hggep.get.prediction(predicted)
    rows = np.delete(np.arange(30), [4, 20])
    assert set(genes.obsp) == set(predicted.obsp)
    for name, graph in predicted.obsp.items():
        np.testing.assert_array_equal(genes.obsp[name].toarray(), graph.toarray()[np.ix_(rows, rows)])
    assert genes.uns["spatial_neighbors"] == predicted.uns["spatial_neighbors"]
    found = sq.gr.spatial_autocorr(genes, mode="moran", n_perms=None, copy=True, show_progress_bar=False)
    x = genes.X.astype(float) - genes.X.mean(axis=0)
    w = genes.obsp["spatial_connectivities"].toarray()
    w = w / np.maximum(w.sum(axis=1, keepdims=True), 1)  # as squidpy takes it
    moran = len(x) / w.sum() * np.einsum("ig,ij,jg->g", x, w, x) / (x**2).sum(axis=0)
    np.testing.assert_allclose(found["I"].reindex(genes.var_names), moran, atol=1e-4)
    assert sq.gr.interaction_matrix(genes, "group", copy=True).sum() == w.astype(bool).sum()
    sq.gr.nhood_enrichment(genes, "group", n_perms=5, show_progress_bar=False, seed=0)


def test_what_comes_from_other_expression_stays_behind(predicted, tmp_path) -> None:
    sc.pp.pca(predicted, n_comps=3)
    sc.pp.neighbors(predicted, n_neighbors=5)
    predicted.obsm["X_umap"] = np.zeros((30, 2))
    predicted.uns["umap"] = {"params": {}}
    sc.tl.rank_genes_groups(predicted, "group", method="t-test", use_raw=False)
    predicted.raw = predicted.copy()
    predicted.obsm["X_uni"] = np.ones((30, 4))
    predicted.obsp["mine"] = sparse.eye(30, format="csr")
    predicted.varp["other"] = np.ones((5, 5))
    predicted.uns["leiden_colors"] = ["#000000"]
    predicted.uns["mine"] = {"a": 1}
    genes = hggep.get.prediction(predicted)
    assert set(genes.obsm) == {"spatial", "X_uni"}
    assert set(genes.obsp) == {"mine"}
    assert set(genes.uns) == {"spatial", "hggep", "leiden_colors", "mine", "log1p"}
    assert not list(genes.varm) + list(genes.varp) + list(genes.layers)
    assert genes.raw is None
    # Scanpy's next steps are of the prediction
    sc.pp.neighbors(genes, n_neighbors=5, use_rep="X")
    expected = sc.pp.neighbors(ad.AnnData(genes.X.copy()), n_neighbors=5, use_rep="X", copy=True)
    np.testing.assert_allclose(genes.obsp["connectivities"].toarray(), expected.obsp["connectivities"].toarray())
    genes.write(tmp_path / "genes.h5ad")
    assert ad.read_h5ad(tmp_path / "genes.h5ad").uns["log1p"]["base"] == pytest.approx(10)


def test_fold_changes_are_those_of_the_counts(predicted) -> None:
    genes = hggep.get.prediction(predicted)
    sc.tl.rank_genes_groups(genes, "group", groups=["a"], reference="b", method="t-test")
    found = sc.get.rank_genes_groups_df(genes, "a").set_index("names")["logfoldchanges"]
    log10 = pd.DataFrame(genes.X, columns=genes.var_names).groupby(genes.obs["group"].to_numpy()).mean()
    expected = np.log2((10 ** log10.loc["a"] - 1) / (10 ** log10.loc["b"] - 1))
    np.testing.assert_allclose(found.reindex(genes.var_names), expected.reindex(genes.var_names), rtol=1e-3)


def test_colours_stay_with_their_categories(predicted) -> None:
    predicted.obs["group"] = pd.Categorical(["gone"] * 30, categories=["a", "gone", "rest"])
    predicted.obs.loc[predicted.obs_names[:10], "group"] = "a"
    predicted.obs.loc[predicted.obs_names[10:], "group"] = "rest"
    predicted.obs.loc[predicted.obs_names[[4, 20]], "group"] = "gone"  # the spots without a prediction
    predicted.uns["group_colors"] = ["#aa0000", "#00aa00", "#0000aa"]
    genes = hggep.get.prediction(predicted)
    assert list(genes.obs["group"].cat.categories) == ["a", "rest"]
    assert list(genes.uns["group_colors"]) == ["#aa0000", "#0000aa"]
    assert list(predicted.uns["group_colors"]) == ["#aa0000", "#00aa00", "#0000aa"]


def test_a_record_without_its_graph_is_left_behind(predicted) -> None:
    predicted.uns["spatial_neighbors"] = {
        "connectivities_key": "spatial_connectivities",
        "distances_key": "spatial_distances",
        "params": {"coord_type": "grid"},
    }
    assert "spatial_neighbors" not in hggep.get.prediction(predicted).uns


def test_no_prediction(sections):
    with pytest.raises(KeyError, match=r"tl\.predict"):
        hggep.get.prediction(sections["S3"])
