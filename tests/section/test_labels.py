"""Labels as spots: centres, sizes and counts are those of the instances, whatever the chunks and scales."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image
from scipy import ndimage
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Scale

import hggep_sc as hggep
from hggep_sc.section import open_sections
from hggep_sc.section._labels import instances_of


def random_labels(seed=0):
    """(60, 90) instances of many shapes, with gaps in their numbering."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 90)), 1.5)
    found, n = ndimage.label(noise > 0.05)
    return (found * 7).astype(np.int32), 7 * np.arange(1, n + 1)


@pytest.mark.parametrize("chunks", [(60, 90), (17, 23)])
@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_centres_are_those_of_scipy(chunks, scale_factors) -> None:
    pixels, names = random_labels()
    element = Labels2DModel.parse(pixels, dims=("y", "x"), chunks=chunks, scale_factors=scale_factors)
    labels, centres, areas = instances_of(element, "cells")
    np.testing.assert_array_equal(labels, names)
    expected = np.array(ndimage.center_of_mass(pixels > 0, pixels, names))[:, ::-1] + 0.5
    np.testing.assert_allclose(centres, expected)
    np.testing.assert_array_equal(areas, ndimage.sum_labels(pixels > 0, pixels, names))


def test_a_table_of_labels_is_a_section(sections) -> None:
    """Squares drawn around the spots of S1, at half its px, matched by key in another order."""
    adata = sections["S1"]
    xy = np.floor(adata.obsm["spatial"] / 2)
    entry = adata.uns["spatial"]["S1"]
    with Image.open(entry["metadata"]["source_image_path"]) as file:
        image = np.asarray(file.convert("RGB"))
    pixels = np.zeros((image.shape[0] // 2, image.shape[1] // 2), dtype=np.int64)
    for number, (x, y) in enumerate(xy.astype(int)):
        pixels[y - 5 : y + 5, x - 5 : x + 5] = 100 + number
    table = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    table.uns.clear()
    table.obs["region"] = pd.Categorical(["cells"] * table.n_obs)
    table.obs["cell"] = 100 + adata.obs_names.get_indexer(table.obs_names)
    sdata = sd.SpatialData(
        images={"he": Image2DModel.parse(image.transpose(2, 0, 1), dims=("c", "y", "x"))},
        labels={
            "cells": Labels2DModel.parse(
                pixels, dims=("y", "x"), transformations={"global": Scale([2, 2], axes=("x", "y"))}
            )
        },
        tables={"table": TableModel.parse(table, region="cells", region_key="region", instance_key="cell")},
    )
    (section,) = open_sections(sdata, mpp=1.0)
    rows = adata.obs_names.get_indexer(table.obs_names)
    np.testing.assert_allclose(section.xy, 2 * xy[rows])
    assert section.spot_shape == "circle"
    assert section.spot_diameter == pytest.approx(2 * 2 * np.sqrt(100 / np.pi))
    # the same prediction as of the spots themselves
    model = hggep.tl.fit(sections["S2"], method="ridge", genes=5, weights=None)
    adata.obsm["spatial"] = 2 * xy
    hggep.tl.predict(adata, model, mpp=1.0)
    predicted = hggep.tl.predict(sdata, model, mpp=1.0, copy=True)["table"]
    np.testing.assert_allclose(predicted.layers["hggep"], adata.layers["hggep"][rows], atol=1e-5)
    sdata["table"].obs["cell"] = sdata["table"].obs["cell"] + 1
    with pytest.raises(ValueError, match=r"1 of 40 instances in obs\['cell'\] .'140'. are not in the index of labels"):
        open_sections(sdata, mpp=1.0)


def test_bins_drawn_as_a_pixel_each_are_squares() -> None:
    pixels = np.arange(1, 61).reshape(6, 10)
    image = np.random.default_rng(0).integers(0, 255, (3, 60, 100)).astype(np.uint8)
    table = ad.AnnData(np.ones((60, 2), np.float32))
    table.obs["region"], table.obs["bin"] = pd.Categorical(["bins"] * 60), np.arange(1, 61)
    scale = {"global": Scale([10, 10], axes=("x", "y"))}
    sdata = sd.SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))},
        labels={"bins": Labels2DModel.parse(pixels, dims=("y", "x"), transformations=scale)},
        tables={"table": TableModel.parse(table, region="bins", region_key="region", instance_key="bin")},
    )
    (section,) = open_sections(sdata, mpp=1.0)
    assert (section.spot_shape, section.spot_diameter) == ("square", pytest.approx(10.0))
    x, y = np.meshgrid(np.arange(10) * 10 + 5, np.arange(6) * 10 + 5)
    np.testing.assert_allclose(section.xy, np.column_stack([x.ravel(), y.ravel()]))
