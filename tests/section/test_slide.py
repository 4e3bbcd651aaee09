"""LazySlide's WSIData: its pixels are those of the slide's file, and copies keep its reader."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
import wsidata
from geopandas import GeoDataFrame
from shapely import box
from spatialdata.models import ShapesModel, TableModel

import hggep_sc as hggep
from hggep_sc.section import copy_of, image_of, open_sections


@pytest.fixture(scope="module")
def path(shared):
    return shared / "data" / "wsi" / "CMU-1-Small-Region.svs"


@pytest.fixture
def wsi(path):
    """36 tiles of 300 px, and a thumbnail of a third of the slide's px."""
    data = wsidata.open_wsi(path, store=None, attach_thumbnail=True, thumbnail_size=1000)
    corners = [(200 + 300 * i, 400 + 300 * j) for i in range(6) for j in range(6)]
    data.shapes["tiles"] = ShapesModel.parse(GeoDataFrame(geometry=[box(x, y, x + 300, y + 300) for x, y in corners]))
    table = ad.AnnData(np.zeros((36, 3), np.float32), var=pd.DataFrame(index=["A", "B", "C"]))
    table.obs["region"], table.obs["tile_id"] = pd.Categorical(["tiles"] * 36), np.arange(36)
    data.tables["features"] = TableModel.parse(table, region="tiles", region_key="region", instance_key="tile_id")
    return data


def test_the_slide_is_read_not_its_thumbnail(wsi, path, warned):
    (section,) = open_sections(wsi)
    assert section.image_name == str(path)
    assert section.mpp == pytest.approx(0.499)
    np.testing.assert_allclose(section.xy[[0, 1, 35]], [[350, 550], [350, 850], [1850, 2050]])
    with section.open_image() as image:
        patch = image.read_patches(section.xy[:1], field=300, size=300)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(patch, tifffile.imread(path)[400:700, 200:500, :3])
    assert "thumbnail" not in warned.text
    wsi.set_mpp(0.25)
    assert open_sections(wsi)[0].mpp == 0.25
    assert open_sections(wsi, mpp=0.5)[0].mpp == 0.5
    (named,) = open_sections(wsi, image_key="wsi_thumbnail")
    assert "wsi_thumbnail" in named.image_name


def test_a_copy_keeps_the_reader_and_leaves_the_original(wsi):
    twin = copy_of(wsi)
    assert type(twin) is type(wsi)
    assert twin.reader is wsi.reader
    assert twin.images["wsi_thumbnail"] is wsi.images["wsi_thumbnail"]
    twin.tables["features"].obs["new"] = 1
    twin.shapes["more"] = twin.shapes["tiles"]
    twin.attrs["new"] = 1
    assert "new" not in wsi.tables["features"].obs
    assert "more" not in wsi.shapes
    assert "new" not in wsi.attrs


def test_tiles_are_laid_on_the_slide(wsi, sections):
    trained = hggep.tl.fit(sections["S2"], method="gene_mean", genes=3)
    tiled = hggep.pp.tile(wsi, spacing_um=100.0, model=trained, key_added="spots", copy=True)
    assert "spots" not in wsi.shapes
    (section,) = open_sections(tiled, table_key="table_spots")
    whole = hggep.pp.tile(wsi.reader.file, spacing_um=100.0)
    np.testing.assert_allclose(section.xy, whole.obsm["spatial"])
    assert [told.mpp for told in image_of(wsi).told] == [pytest.approx(0.499)]
    predicted = hggep.tl.predict(tiled, trained, table_key="table_spots", copy=True)
    assert np.isfinite(predicted["table_spots"].layers["hggep"]).all()
    assert "hggep" not in tiled["table_spots"].layers


def test_a_slide_that_cannot_be_read_is_refused_with_a_remedy(wsi, tmp_path):
    wsi.reader.file = str(tmp_path / "slide.mrxs")
    (tmp_path / "slide.mrxs").write_bytes(b"preview")
    with pytest.raises(ValueError, match=r"slide of the WSIData.*MIRAX.*`image_key=`"):
        open_sections(wsi)
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((64, 48, 3), np.uint8), photometric="rgb")
    wsi.reader.file = str(other)
    with pytest.raises(ValueError, match=r"2220 x 2967 px.*48 x 64 px: it shows another scene"):
        open_sections(wsi)
