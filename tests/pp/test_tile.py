import dataclasses

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy.spatial import cKDTree
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, get_transformation

import hggep_sc as hggep
from hggep_sc.image import SectionImage

MPP = 4.0
AREA = np.pi * 0.8**2  # mm2 of tissue
TO_GLOBAL = Affine([[0, -2.0, 700], [2.0, 0, -40], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


@pytest.fixture
def sdata(slide, pixels):
    array = da.from_array(pixels(slide[0]).transpose(2, 0, 1), chunks=(3, 256, 256))
    image = Image2DModel.parse(
        array, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2], transformations={"global": TO_GLOBAL}
    )
    return sd.SpatialData(images={"he": image})


def predict(data, model, **keywords):
    return hggep.tl.predict(data, model, device="cpu", progress=False, **keywords)


class TestGrid:
    @pytest.mark.parametrize("spacing", [40.0, 100.0])
    def test_square(self, slide_file, spacing):
        spots = hggep.pp.tile(slide_file, spacing_um=spacing)
        places = spots.obs[["array_col", "array_row"]].to_numpy()
        step = spacing / MPP
        origin = spots.obsm["spatial"] - step * places
        assert np.allclose(origin, origin[0])
        assert spots.n_obs == pytest.approx(AREA / (spacing / 1000) ** 2, rel=0.08)

    def test_hexagonal(self, slide_file):
        spots = hggep.pp.tile(slide_file, spacing_um=60.0, grid="hexagonal")
        xy, places = spots.obsm["spatial"], spots.obs[["array_col", "array_row"]].to_numpy()
        inner = np.hypot(*(xy - [400, 300]).T) < 150
        distance, _ = cKDTree(xy).query(xy[inner], k=8)
        assert np.allclose(distance[:, 1:7], 60 / MPP)
        assert (distance[:, 7] > 1.7 * 60 / MPP).all()
        # as in Visium: columns in steps of two, odd ones in odd rows
        assert (places.sum(axis=1) % 2 == 0).all()
        origin = xy - places * [30 / MPP, 60 / MPP * np.sqrt(3) / 2]
        assert np.allclose(origin, origin[0])
        assert spots.n_obs == pytest.approx(AREA / (0.06**2 * np.sqrt(3) / 2), rel=0.08)

    def test_covers_a_whole_image(self, pixels):
        """No glass: every square of the grid, centred on the image."""
        whole = hggep.pp.TissueMask(np.ones((1, 1), bool), np.array([105.0, 62.0]), None)
        spots = hggep.pp.tile(np.zeros((62, 105, 3), np.uint8), spacing_um=10, mpp=1.0, min_tissue=0.9, tissue=whole)
        assert spots.n_obs == 6 * 10
        assert np.allclose(spots.obsm["spatial"].mean(axis=0), [52.5, 31.0])

    def test_min_tissue(self, slide_file):
        few, more = (hggep.pp.tile(slide_file, min_tissue=share).n_obs for share in (1.0, 0.01))
        assert few < hggep.pp.tile(slide_file).n_obs < more

    def test_own_mask(self, slide_file):
        mask = hggep.pp.TissueMask(np.array([[True, False]]), np.array([400.0, 600.0]), MPP)
        spots = hggep.pp.tile(slide_file, tissue=mask)
        assert spots.obsm["spatial"][:, 0].max() < 400
        assert spots.n_obs == 16 * 24


class TestFromImage:
    def test_file(self, slide_file, trained):
        slide = hggep.pp.tile(slide_file, spacing_um=200, model=trained)
        assert list(slide.var_names) == trained.genes
        assert slide.X.nnz == 0
        assert slide.obs_names.is_unique
        entry = slide.uns["spatial"]["disc"]
        assert entry["metadata"]["source_image_path"] == str(slide_file)
        assert entry["scalefactors"]["microns_per_pixel"] == pytest.approx(MPP)
        assert set(entry["images"]) == {"hires"}
        predict(slide, trained)
        assert np.isfinite(slide.layers["hggep"]).all()
        assert list(slide.uns["hggep"]["sections"]["image"]) == [str(slide_file)]
        assert slide.uns["hggep"]["sections"]["mpp"][0] == pytest.approx(MPP)

    def test_array_gives_the_same(self, slide, pixels, slide_file, trained):
        of_file = hggep.pp.tile(slide_file, spacing_um=200, model=trained)
        of_array = hggep.pp.tile(pixels(slide[0]), spacing_um=200, model=trained, mpp=MPP, library_id="mine")
        for spots in (of_file, of_array):
            predict(spots, trained)
        assert np.array_equal(of_array.layers["hggep"], of_file.layers["hggep"])
        assert set(of_array.uns["spatial"]) == {"mine"}

    def test_drawn(self, slide_file, trained):
        slide = hggep.pp.tile(slide_file, spacing_um=200, model=trained)
        predict(slide, trained)
        (ax,) = hggep.pl.gene_map(slide, trained.genes[0])
        (spots,) = (c for c in ax.collections if len(c.get_paths()) == slide.n_obs)
        assert np.ptp(spots.get_paths()[0].vertices, axis=0) == pytest.approx([200 / MPP] * 2)

    def test_survives_h5ad(self, slide_file, trained, tmp_path):
        slide = hggep.pp.tile(slide_file, spacing_um=200, model=trained)
        slide.write_h5ad(tmp_path / "s.h5ad")
        again = ad.read_h5ad(tmp_path / "s.h5ad")
        predict(slide, trained)
        predict(again, trained)
        assert np.array_equal(again.layers["hggep"], slide.layers["hggep"])


class TestFromSpatialData:
    @pytest.mark.parametrize("grid", ["square", "hexagonal"])
    def test_gives_the_same_as_the_image(self, sdata, slide, pixels, trained, grid):
        keywords = {"spacing_um": 200, "model": trained, "mpp": MPP, "grid": grid}
        assert hggep.pp.tile(sdata, **keywords) is None
        spots = hggep.pp.tile(pixels(slide[0]), **keywords)
        table, shapes = sdata.tables["table_tiles"], sdata.shapes["tiles"]
        assert list(table.obs_names) == list(spots.obs_names)
        assert np.allclose(np.column_stack([shapes.centroid.x, shapes.centroid.y]), spots.obsm["spatial"])
        if grid == "square":
            assert np.allclose(shapes.area, (200 / MPP) ** 2)
        else:
            assert np.allclose(shapes["radius"], 100 / MPP)
        assert get_transformation(shapes, "global") == get_transformation(sdata.images["he"], "global")
        predict(sdata, trained)
        predict(spots, trained)
        assert table.uns["hggep"]["sections"]["mpp"][0] == pytest.approx(MPP)
        # patches come from a coarser level of the pyramid
        spread = spots.layers["hggep"].std(axis=0).mean()
        assert np.abs(table.layers["hggep"] - spots.layers["hggep"]).mean() < 0.2 * spread

    def test_image_is_not_looked_at_where_a_mask_is_given(self, sdata, monkeypatch):
        mask = hggep.pp.tissue_mask(sdata, mpp=MPP)
        looked = hggep.pp.tile(sdata, mpp=MPP, copy=True)
        monkeypatch.setattr(SectionImage, "thumbnail", lambda *_: pytest.fail("the image was looked at"))
        hggep.pp.tile(sdata, mpp=MPP, tissue=mask)
        assert list(sdata.tables["table_tiles"].obs_names) == list(looked.tables["table_tiles"].obs_names)

    def test_copy(self, sdata, trained):
        copied = hggep.pp.tile(sdata, model=trained, mpp=MPP, key_added="grid", copy=True)
        assert set(copied.shapes) == {"grid"}
        assert set(copied.tables) == {"table_grid"}
        assert not len(sdata.shapes)
        assert not len(sdata.tables)

    def test_disk_is_not_touched(self, sdata, trained, tmp_path):
        path = tmp_path / "s.zarr"
        sdata.write(path)
        opened = sd.read_zarr(path)
        before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
        hggep.pp.tile(opened, spacing_um=200, model=trained, mpp=MPP)
        predict(opened, trained)
        assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
        assert isinstance(opened.images["he"]["scale0"]["image"].data, da.Array)
        opened.write(tmp_path / "t.zarr")
        again = sd.read_zarr(tmp_path / "t.zarr")
        expected = opened.tables["table_tiles"].layers["hggep"].copy()
        predict(again, trained)
        assert np.array_equal(again.tables["table_tiles"].layers["hggep"], expected)

    def test_finest_level_is_left_alone(self, slide, pixels, trained):
        """What tells the tissue is a reduced level; the full image may be larger than memory."""

        def refuse(block):
            pytest.fail("the finest level was read")

        whole = pixels(slide[0]).transpose(2, 0, 1)
        names = {"dims": ("c", "y", "x"), "c_coords": ["r", "g", "b"]}
        image = Image2DModel.parse(da.from_array(whole, chunks=(3, 300, 300)), scale_factors=[2], **names)
        level = image["scale0"]["image"]
        lazy = da.from_array(whole, chunks=(3, 300, 300)).map_blocks(refuse, dtype=whole.dtype, meta=whole[:0, :0, :0])
        image["scale0"]["image"] = level.copy(data=lazy)
        sdata = sd.SpatialData(images={"he": image})
        hggep.pp.tile(sdata, mpp=MPP)
        assert len(sdata.shapes["tiles"]) > 100

    def test_taken_names(self, sdata):
        hggep.pp.tile(sdata, mpp=MPP)
        with pytest.raises(ValueError, match="key_added"):
            hggep.pp.tile(sdata, mpp=MPP)


class TestRefuses:
    @pytest.mark.parametrize(
        ("keywords", "match"),
        [
            ({"spacing_um": 3.0}, "less than a px"),
            ({"spacing_um": -100.0}, "spacing_um=-100.0 must be a finite number above 0"),
            ({"spacing_um": float("nan")}, "spacing_um=nan must be a finite number above 0"),
            ({"grid": "triangles"}, "'hexagonal'"),
            ({"min_tissue": 0}, "min_tissue"),
            ({"mpp": 0}, "`mpp`"),
            ({"copy": True}, "`copy`"),
            ({"image_key": "he"}, "`image_key`"),
        ],
    )
    def test_values(self, slide_file, keywords, match):
        with pytest.raises(ValueError, match=match):
            hggep.pp.tile(slide_file, **keywords)

    def test_unknown_scale(self, slide, pixels):
        with pytest.raises(ValueError, match="give `mpp=`"):
            hggep.pp.tile(pixels(slide[0]))

    def test_no_tissue(self):
        with pytest.raises(ValueError, match="no tissue"):
            hggep.pp.tile(np.full((500, 500, 3), 240, np.uint8), mpp=MPP)

    def test_no_image(self, sections, trained):
        with pytest.raises(TypeError, match="source_image_path"):
            hggep.pp.tile(sections["S1"])
        with pytest.raises(TypeError, match="an image is expected"):
            hggep.pp.tile(3)
        with pytest.raises(ValueError, match="`library_id`"):
            hggep.pp.tile(sd.SpatialData(), library_id="a")
        with pytest.raises(ValueError, match="library_id='a/b': files cannot hold"):  # two keys, one in the other
            hggep.pp.tile(np.zeros((8, 8, 3), dtype=np.uint8), library_id="a/b", spacing_um=4, mpp=1)

    def test_no_model(self, slide_file):
        with pytest.raises(TypeError, match=r"tl\.fit"):
            hggep.pp.tile(slide_file, model="model")

    def test_says_that_the_model_has_no_scale(self, slide_file, trained, monkeypatch, warned):
        monkeypatch.setattr(trained, "mpp", None)
        hggep.pp.tile(slide_file, model=trained)
        assert "physical scale that the model was trained at is unknown" in warned.text


def test_from_a_real_slide_to_maps(shared, trained, warned):
    """Of a tissue that the model never saw: it says so."""
    slide = hggep.pp.tile(shared / "data" / "wsi" / "CMU-1-Small-Region.svs", model=trained)
    assert slide.uns["spatial"]["CMU-1-Small-Region"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.499)
    assert 40 < slide.n_obs < 110  # of 1.1 x 1.5 mm, about half tissue
    predict(slide, trained)
    assert "looks unlike the training sections" in warned.text
    assert len(hggep.pl.gene_map(slide, trained.genes[:2])) == 2


class TestOwnMask:
    @pytest.fixture
    def found(self, slide_file):
        return hggep.pp.tissue_mask(slide_file)

    @pytest.fixture
    def expected(self, slide_file, found):
        return list(hggep.pp.tile(slide_file, tissue=found).obs_names)

    @pytest.mark.parametrize("kind", [lambda m: m, np.uint8, lambda m: np.uint8(255) * m, np.int32, np.float32])
    @pytest.mark.parametrize("as_array", [True, False])
    def test_of_two_values(self, slide_file, found, expected, kind, as_array):
        mask = kind(found.mask)
        tissue = mask if as_array else dataclasses.replace(found, mask=mask)
        assert list(hggep.pp.tile(slide_file, tissue=tissue).obs_names) == expected

    def test_at_any_resolution(self, slide_file, found, expected):
        assert list(hggep.pp.tile(slide_file, tissue=found.mask.repeat(4, 0).repeat(4, 1)).obs_names) == expected

    def test_over_spatialdata(self, sdata, found, expected):
        hggep.pp.tile(sdata, mpp=MPP, tissue=found.mask)
        assert list(sdata.tables["table_tiles"].obs_names) == expected

    @pytest.mark.parametrize(
        ("mask", "error", "match"),
        [
            (5, TypeError, "`tissue` must be a 2-D array of booleans.*found 5 "),
            ("mask.png", TypeError, "`tissue` must be a 2-D array of booleans.*'mask.png'"),
            (np.ones((600, 800, 3), bool), ValueError, r"`tissue` has shape \(600, 800, 3\).*mask\[\.\.\., 0\]"),
            (np.ones((800, 600), bool), ValueError, "`tissue` is a mask of 600 x 800 px, and the image has 800 x 600"),
            (np.linspace(0, 1, 480_000).reshape(600, 800), ValueError, "`tissue` holds values from 0 to 1.*mask > 0.5"),
            (np.arange(480_000).reshape(600, 800) % 3, ValueError, "`tissue` holds values from 0 to 2, 3 of them"),
            (np.full((600, 800), np.nan), ValueError, "`tissue` holds values from nan"),
            (np.full((600, 800), "a"), TypeError, "`tissue` holds values of type"),
        ],
    )
    def test_refused(self, slide_file, mask, error, match):
        with pytest.raises(error, match=match):
            hggep.pp.tile(slide_file, tissue=mask)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (
                {"mask": np.ones((2400, 3200), bool)},
                r"its mask of 3200 x 2400 px times its factor \(2, 2\) covers",
            ),
            ({"mask": np.ones((400, 300), bool)}, "covers 600 x 800 px, and the image has 800 x 600"),
            ({"factor": np.array([4.0, 4.0])}, "covers 1600 x 1200 px"),
        ],
    )
    def test_of_another_image_is_refused(self, slide_file, found, change, match):
        with pytest.raises(ValueError, match=match):
            hggep.pp.tile(slide_file, tissue=dataclasses.replace(found, **change))

    @pytest.mark.parametrize("field", [{"factor": 2.0}, {"factor": [0, 1]}, {"factor": "a"}, {"mpp": -1}, {"mpp": "a"}])
    def test_a_mask_has_numbers(self, found, field):
        with pytest.raises(ValueError, match=f"`{next(iter(field))}` of a TissueMask"):
            dataclasses.replace(found, **field)

    def test_gray_images_need_one(self, slide, pixels, found, warned):
        gray = pixels(slide[0].mean(axis=2))
        with pytest.raises(ValueError, match=r"no tissue on the array: it is gray.*`tissue=`"):
            hggep.pp.tile(gray, mpp=MPP)
        assert not hggep.pp.tissue_mask(gray, mpp=MPP).mask.any()
        assert "it is gray, and tissue is told by H&E's colours" in warned.text
        assert hggep.pp.tile(gray, mpp=MPP, tissue=found).n_obs > 20


def test_spacing_is_that_of_the_models_spots(slide_file, trained, monkeypatch):
    for known, spacing in ((None, 100), ((100.0, 100.0), 100), ((50.0, 200.0), 100), ((200.0, 200.0), 200)):
        monkeypatch.setattr(trained, "spacing_um", known)
        factors = hggep.pp.tile(slide_file, model=trained).uns["spatial"]["disc"]["scalefactors"]
        assert factors["bin_size_um"] == pytest.approx(spacing)
