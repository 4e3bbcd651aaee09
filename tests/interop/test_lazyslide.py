"""LazySlide runs a model of ours on its features, and its slides are predicted and trained on as they are."""

import importlib
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
import wsidata
from scipy import sparse
from spatialdata.models import TableModel

import hggep_sc as hggep
from helpers import TINY
from torchvision_stand_in import stand_in

stand_in()  # which timm imports, and through it LazySlide's models

import lazyslide as zs  # noqa: E402
from lazyslide_models.base import FeaturePredictionModel  # noqa: E402

from hggep_sc.interop import lazyslide as interop  # noqa: E402

GENES = [f"G{i}" for i in range(10)]
FEW = {"genes": 8, "device": "cpu", "progress": False}
CPU = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def path(shared):
    return shared / "data" / "wsi" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def _slide(path):
    """Tiles of 128 px on the tissue; means and deviations of their colours as features; counts that follow these."""
    wsi = wsidata.open_wsi(path, store=None)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 128, mpp=0.499)
    pixels = tifffile.imread(path)[..., :3] / 255
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy().astype(int)
    tiles = [pixels[y : y + 128, x : x + 128] for x, y in corners]
    features = np.array([[*tile.mean((0, 1)), *tile.std((0, 1))] for tile in tiles], dtype=np.float32)
    wsidata.io.add_features(wsi, "uni2_tiles", "tiles", features)
    rng = np.random.default_rng(0)
    drive = 3 * (features - features.mean(axis=0)) / features.std(axis=0) @ rng.normal(0, 0.1, (6, len(GENES)))
    order = rng.permutation(len(features))
    counts = sparse.csr_matrix(rng.poisson(5 * np.exp(drive)).astype(np.float32))[order]
    table = ad.AnnData(counts, var=pd.DataFrame(index=GENES))
    table.obs_names = [f"spot{i}" for i in order]
    table.obs["of"], table.obs["tile"] = pd.Categorical(["tiles"] * len(order)), order
    wsi.tables["counts"] = TableModel.parse(table, region="tiles", region_key="of", instance_key="tile")
    return wsi


@pytest.fixture
def wsi(_slide):
    return hggep.section.copy_of(_slide)


@pytest.fixture(scope="module")
def plain(_slide, path):
    """The same spots as an AnnData, in the order of the counts."""
    table = _slide.tables["counts"]
    order = table.obs["tile"].to_numpy()
    corners = _slide.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()[order]
    adata = ad.AnnData(table.X.copy(), obs=pd.DataFrame(index=table.obs_names), var=table.var.copy())
    adata.obsm["spatial"] = corners + 64.0
    adata.obsm["uni2_tiles"] = _slide.tables["uni2_tiles"].X[order]
    metadata = {"source_image_path": str(path)}
    adata.uns["spatial"] = {"tiles": {"scalefactors": {"microns_per_pixel": 0.499}, "metadata": metadata}}
    return adata


@pytest.fixture(scope="module")
def model(_slide):
    return hggep.tl.fit(_slide, table_key="counts", encoder="uni2_tiles", config=TINY, **FEW)


@pytest.fixture(scope="module")
def network_alone(_slide):
    """Without a linear path, which knows no chunks."""
    config = {**TINY, "linear": False, "cross_fit": False}
    return hggep.tl.fit(_slide, table_key="counts", encoder="uni2_tiles", config=config, **FEW)


@pytest.fixture(scope="module")
def expected(plain, model):
    """Prediction of the AnnData, tiles in LazySlide's order."""
    predicted = hggep.tl.predict(plain, model, copy=True, **CPU)
    return predicted[np.argsort([int(name[4:]) for name in plain.obs_names]), model.genes].layers["hggep"]


def test_a_slide_with_counts_and_features_trains_as_an_anndata_does(plain, model):
    again = hggep.tl.fit(plain, encoder="uni2_tiles", config=TINY, **FEW)
    assert again.genes == model.genes
    features, xy = plain.obsm["uni2_tiles"], plain.obsm["spatial"]
    np.testing.assert_allclose(
        again.predict_features(features, xy, mpp=0.499, device="cpu")[0],
        model.predict_features(features, xy, mpp=0.499, device="cpu")[0],
        atol=1e-5,
    )


def test_lazyslide_runs_the_model(wsi, model, expected):
    tile_model = interop.feature_model(model, mpp=wsi.properties.mpp)
    assert isinstance(tile_model, FeaturePredictionModel)
    zs.tl.feature_prediction(wsi, tile_model, pbar=False, device="cpu", batch_size=16)
    table = wsi.tables["hggep_tiles"]
    assert list(table.var_names) == model.genes
    np.testing.assert_allclose(table.X, expected, atol=1e-4)


def test_lazyslide_runs_the_model_in_chunks(wsi, network_alone):
    model = network_alone
    tile_model = interop.feature_model(model, mpp=wsi.properties.mpp, chunk_spots=40)
    zs.tl.feature_prediction(wsi, tile_model, pbar=False, device="cpu")
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()
    how = {"mpp": wsi.properties.mpp, "device": "cpu"}
    chunked, whole = (
        model.predict_features(wsi.tables["uni2_tiles"].X, corners, chunk_spots=n, **how)[0] for n in (40, None)
    )
    np.testing.assert_array_equal(wsi.tables["hggep_tiles"].X, chunked)
    assert not np.array_equal(chunked, whole)


def test_features_of_another_name(wsi, model, expected):
    wsi.tables["virchow_tiles"] = wsi.tables["uni2_tiles"]
    del wsi.tables["uni2_tiles"]
    tile_model = interop.feature_model(model, mpp=0.499, features_model_name="virchow")
    zs.tl.feature_prediction(wsi, tile_model, pbar=False, device="cpu", key_added="mine")
    np.testing.assert_allclose(wsi.tables["mine"].X, expected, atol=1e-4)


def test_tiles_and_features_are_predicted(wsi, model, expected):
    interop.gene_table(wsi, model)
    hggep.tl.predict(wsi, model, table_key="hggep_genes", **CPU)
    table = wsi.tables["hggep_genes"]
    np.testing.assert_allclose(table[:, model.genes].layers["hggep"], expected, atol=1e-4)
    assert table.uns["hggep"]["sections"]["mpp"][0] == pytest.approx(0.499)
    sections = table.uns["hggep"]["sections"]
    assert list(sections["name"]) == ["tiles"]


def test_a_model_that_looks_at_the_slide_predicts_the_tiles(wsi, plain):
    ridge = hggep.tl.fit(plain, method="ridge", weights=None, genes=5, progress=False)
    interop.gene_table(wsi, ridge, key_added="seen")
    hggep.tl.predict(wsi, ridge, table_key="seen", **CPU)
    expected = hggep.tl.predict(plain, ridge, copy=True, **CPU)
    order = np.argsort([int(name[4:]) for name in plain.obs_names])
    found = wsi.tables["seen"][:, ridge.genes].layers["hggep"]
    np.testing.assert_allclose(found, expected[order, ridge.genes].layers["hggep"], atol=1e-5)
    assert np.ptp(found, axis=0).min() > 0


def test_a_tile_without_features_is_named(wsi, model):
    interop.gene_table(wsi, model)
    wsi.tables["uni2_tiles"] = wsi.tables["uni2_tiles"][1:].copy()
    with pytest.raises(
        ValueError, match=r"tables\['uni2_tiles'\]\.X has no row for 1 of \d+ instances of 'tiles' \('0'\)"
    ):
        hggep.tl.predict(wsi, model, table_key="hggep_genes", **CPU)
    del wsi.tables["uni2_tiles"]
    with pytest.raises(KeyError, match=r"no embeddings in obsm\['uni2_tiles'\].* other tables of 'tiles' are 'counts'"):
        hggep.tl.predict(wsi, model, table_key="hggep_genes", **CPU)
    assert "hggep" not in wsi.tables["hggep_genes"].layers


class TestRefused:
    def test_a_model_that_takes_no_features(self, trained, plain):
        with pytest.raises(ValueError, match=r"looks at the slide itself.*gene_table"):
            interop.feature_model(trained, mpp=0.5)
        mean = hggep.tl.fit(plain, method="gene_mean", genes=3, progress=False)
        with pytest.raises(TypeError, match=r"must be an HGGEP.*not GeneMean.*gene_table"):
            interop.feature_model(mean, mpp=0.5)

    @pytest.mark.parametrize(("mpp", "message"), [(None, "give um per px"), (499.0, "implausible")])
    def test_scales(self, model, mpp, message):
        with pytest.raises(ValueError, match=message):
            interop.feature_model(model, mpp=mpp)

    def test_no_coordinates(self, model, plain):
        with pytest.raises(ValueError, match="coords are needed"):
            interop.feature_model(model, mpp=0.5).predict(plain.obsm["uni2_tiles"])

    def test_tables(self, wsi, model):
        with pytest.raises(KeyError, match=r"no shapes 'tile'; shapes: .*tiles"):
            interop.gene_table(wsi, model, tile_key="tile")
        with pytest.raises(ValueError, match="has an element 'tissues' already"):
            interop.gene_table(wsi, model, key_added="tissues")

    def test_without_lazyslide(self, monkeypatch):
        monkeypatch.delitem(sys.modules, interop.__name__)
        monkeypatch.setitem(sys.modules, "lazyslide_models", None)
        monkeypatch.setitem(sys.modules, "lazyslide_models.base", None)
        with pytest.raises(ImportError, match=r'pip install "hggep-sc\[lazyslide\]"'):
            importlib.import_module(interop.__name__)
