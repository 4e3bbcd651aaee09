"""What `tl.predict` and `tl.domains` write goes into squidpy, Scanpy and spatialdata-plot as it is."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from scipy.spatial import cKDTree
from scipy.stats import ttest_ind

import hggep_sc as hggep
from helpers import as_spatialdata

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of squidpy's own docstrings
    import spatialdata_plot  # noqa: F401  (adds `.pl` to SpatialData)
    import squidpy as sq

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def predicted(_synthetic, trained):
    """S3 with a prediction, NaN for the genes that the model does not know, and two domains of it."""
    section = _synthetic["S3"].copy()
    hggep.tl.predict(section, trained, device="cpu", progress=False)
    hggep.tl.domains(section, n_domains=2)
    return section


@pytest.fixture
def gene(trained):
    return trained.genes[3]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(ax):
    """Values that the spots of a plot are coloured by, in order of size."""
    (values,) = [np.asarray(found) for each in ax.collections if (found := each.get_array()) is not None]
    return np.sort(values[np.isfinite(values)])


def layer_of(table, gene):
    return np.sort(table[:, gene].layers["hggep"].ravel())


def test_spatial_scatter_of_squidpy(predicted, gene):
    of_gene, of_domain = sq.pl.spatial_scatter(
        predicted, color=[gene, "hggep_domain"], layer="hggep", return_ax=True, colorbar=False
    )
    np.testing.assert_allclose(drawn(of_gene), layer_of(predicted, gene), rtol=1e-6)
    assert {text.get_text() for text in of_domain.get_legend().get_texts()} == {"0", "1"}


def test_spatial_plot_of_scanpy(predicted, gene):
    (ax,) = sc.pl.spatial(predicted, color=gene, layer="hggep", show=False, colorbar_loc=None)
    np.testing.assert_allclose(drawn(ax), layer_of(predicted, gene), rtol=1e-6)


def test_graphs_of_squidpy(predicted, trained):
    table = predicted.copy()
    sq.gr.spatial_neighbors_grid(table, n_neighs=6)
    graph = table.obsp["spatial_connectivities"].toarray()
    by_row = graph / graph.sum(axis=1, keepdims=True)
    found = sq.gr.spatial_autocorr(table, layer="hggep", genes=trained.genes, copy=True)["I"]
    for gene in trained.genes[:3]:
        centred = table[:, gene].layers["hggep"].ravel().astype(np.float64)
        centred -= centred.mean()
        expected = len(centred) / by_row.sum() * (centred @ by_row @ centred) / (centred @ centred)
        assert found[gene] == pytest.approx(expected, rel=1e-5)
    counted = sq.gr.nhood_enrichment(table, cluster_key="hggep_domain", copy=True, show_progress_bar=False).counts
    first = (table.obs["hggep_domain"] == "0").to_numpy()
    assert counted[0, 1] == graph[first][:, ~first].sum()
    apart, _ = sq.gr.co_occurrence(table, cluster_key="hggep_domain", copy=True)
    assert apart.shape[:2] == (2, 2)


def test_ranked_genes_of_scanpy(predicted, trained):
    table = predicted.copy()
    sc.tl.rank_genes_groups(table, "hggep_domain", layer="hggep")
    ranked = sc.get.rank_genes_groups_df(table, "0").dropna().set_index("names")
    assert set(ranked.index) == set(trained.genes)
    first = (table.obs["hggep_domain"] == "0").to_numpy()
    for gene in trained.genes[:3]:
        values = table[:, gene].layers["hggep"].ravel().astype(np.float64)
        expected = ttest_ind(values[first], values[~first], equal_var=False).statistic
        assert ranked.loc[gene, "scores"] == pytest.approx(expected, rel=1e-3)


def test_spatialdata_plot(sections, predicted, trained, gene):
    """Each shape has the colour of the prediction at its place, though the table is in another order."""
    sdata = as_spatialdata(sections["S3"])
    hggep.tl.predict(sdata, trained, mpp=1.0, device="cpu", progress=False)
    _, ax = plt.subplots()
    shapes = sdata.pl.render_images("he").pl.render_shapes("spots", color=gene, table_layer="hggep")
    shapes.pl.show(ax=ax, coordinate_systems="global", colorbar=False)
    (spots,) = ax.collections
    centres = [path.get_extents().get_points().mean(axis=0) for path in spots.get_paths()]
    px = (np.array(centres) - [30, -12]) / 0.5  # as `as_spatialdata` lays the image
    apart, nearest = cKDTree(predicted.obsm["spatial"]).query(px)
    assert apart.max() < 1
    values = predicted[nearest, gene].layers["hggep"].ravel()
    expected = plt.get_cmap("viridis")((values - values.min()) / np.ptp(values))
    np.testing.assert_allclose(spots.get_facecolor()[:, :3], expected[:, :3], atol=0.02)
