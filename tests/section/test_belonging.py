"""Images, their copies and coordinates that do not belong together are refused or warned of; those that do pass."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import hggep_sc as hggep
from hggep_sc.section import open_sections

GLASS = 240
LEFT, TOP = 500, 160  # px of glass beside and above the tissue, so that no turn looks alike


@pytest.fixture(autouse=True)
def _every_check():
    yield
    hggep.settings.skip_checks = frozenset()


@pytest.fixture(scope="module")
def slide(_synthetic):
    """Pixels of a section in the lower right of a slide, (996, 1336, 3), and its spots' coordinates."""
    adata = _synthetic["S1"]
    with Image.open(adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]) as file:
        tissue = np.asarray(file.convert("RGB"))
    pixels = np.pad(tissue, ((TOP, 0), (LEFT, 0), (0, 0)), mode="edge")
    pixels[:TOP] = pixels[:, :LEFT] = GLASS
    return pixels, np.asarray(adata.obsm["spatial"]) + np.array([LEFT, TOP])


def reduced(pixels, factor):
    return np.asarray(Image.fromarray(pixels).reduce(factor))


@pytest.fixture
def visium(sections, slide):
    """Make S1 with its full image in memory, and copies at a quarter and a twentieth."""

    def make(full=None, *, xy=None, hires=None, **factors):
        adata = sections["S1"].copy()
        adata.obsm["spatial"] = slide[1].copy() if xy is None else xy
        adata.uns["spatial"] = {
            "S1": {
                "images": {
                    "full": slide[0] if full is None else full,
                    "hires": reduced(slide[0], 4) if hires is None else hires,
                    "lowres": reduced(slide[0], 20),
                },
                "scalefactors": {
                    "microns_per_pixel": 1.0,
                    "tissue_full_scalef": 1.0,
                    "tissue_hires_scalef": 0.25,
                    "tissue_lowres_scalef": 0.05,
                }
                | factors,
                "metadata": {},
            }
        }
        return adata

    return make


# --- images among themselves


def test_copies_of_one_image_pass(visium, warned, tmp_path, slide):
    open_sections(visium())
    open_sections(visium(), image_key="hires")
    tifffile.imwrite(tmp_path / "slide.tif", slide[0], tile=(256, 256), photometric="rgb")
    of_file = visium()
    del of_file.uns["spatial"]["S1"]["images"]["full"]
    of_file.uns["spatial"]["S1"]["metadata"]["source_image_path"] = str(tmp_path / "slide.tif")
    open_sections(of_file)
    assert warned.messages == []


TURNED = {
    "turned by 90 degrees clockwise": lambda pixels: np.rot90(pixels, -1),
    "turned by 180 degrees": lambda pixels: np.rot90(pixels, 2),
    "turned by 90 degrees counterclockwise": np.rot90,
    "mirrored left to right": lambda pixels: pixels[:, ::-1],
    "mirrored top to bottom": lambda pixels: pixels[::-1],
    "transposed (rows and columns swapped)": lambda pixels: pixels.transpose(1, 0, 2),
    "transposed the other way": lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    "a scan 2 times as large": lambda pixels: pixels.repeat(2, axis=0).repeat(2, axis=1),
    "a scan 0.5 times as large": lambda pixels: reduced(pixels, 2),
    "cropped, padded": lambda pixels: pixels[100:, 200:],
    "or of another scan": lambda pixels: np.pad(pixels, ((0, 0), (0, 300), (0, 0)), mode="edge"),
}


@pytest.mark.parametrize("what", TURNED)
@pytest.mark.parametrize("square", [False, True])
def test_an_image_that_contradicts_its_copy_is_refused(what, square, visium, slide):
    pixels = slide[0][:, -996:] if square else slide[0]  # whose sides tell nothing
    xy = slide[1] - [1336 - 996, 0] if square else slide[1]
    wrong = np.ascontiguousarray(TURNED[what](pixels))
    adata = visium(wrong, xy=xy, hires=reduced(pixels, 4))
    adata.uns["spatial"]["S1"]["images"].pop("lowres")
    with pytest.raises(ValueError) as refused:
        open_sections(adata)
    assert what in str(refused.value)
    assert "image_key" in str(refused.value)
    assert "skip_checks = {'images_agree'}" in str(refused.value)
    # the ways out
    (section,) = open_sections(adata, image_key="hires")
    np.testing.assert_allclose(section.xy, xy / 4)
    hggep.settings.skip_checks = {"images_agree", "spots_on_tissue"}
    if what in ("turned by 180 degrees", "mirrored left to right", "or of another scan"):  # all spots inside
        (section,) = open_sections(adata)
        np.testing.assert_allclose(section.xy, xy)
    hggep.settings.skip_checks = frozenset()


def test_an_image_of_something_else_is_warned_of(visium, slide, warned):
    open_sections(visium(np.roll(slide[0], (-498, -400), axis=(0, 1)), xy=(slide[1] - [400, 498]) % [1336, 996]))
    assert any("do not show the same" in line and "images_agree" in line for line in warned.messages)


def test_scale_factors_may_be_rounded(visium, slide, warned):
    hires = np.asarray(Image.fromarray(slide[0]).resize((227, 169)))  # 0.1699 and 0.1697
    open_sections(visium(hires=hires, tissue_hires_scalef=0.17))
    assert warned.messages == []
    with pytest.raises(ValueError, match="the scale factor is wrong"):
        open_sections(visium(hires=hires, tissue_hires_scalef=0.2))


def test_a_crop_beside_the_whole(visium, slide, warned):
    """As bin2cell keeps it: a key of its own, coordinates of its own."""

    def cropped(**metadata):
        adata = visium()
        entry = adata.uns["spatial"]["S1"]
        whole = entry["images"].pop("full")
        entry["images"]["1.0_mpp_150_buffer"] = whole[90:, 380:]
        entry["scalefactors"]["tissue_1.0_mpp_150_buffer_scalef"] = 1.0
        entry["metadata"] = metadata
        adata.obsm["spatial_cropped_150_buffer"] = adata.obsm["spatial"] - [380, 90]
        return adata

    both = {"image_key": "1.0_mpp_150_buffer", "spatial_key": "spatial_cropped_150_buffer"}
    for image_key in (None, both["image_key"]):
        with pytest.raises(ValueError, match=r"cropped, padded.*'spatial_cropped_150_buffer'"):
            open_sections(cropped(), image_key=image_key)
    adata = cropped()
    for how in (both, {"spatial_key": both["spatial_key"]}, {"image_key": "hires"}):
        warned.clear()
        (section,) = open_sections(adata, **how)
        assert warned.messages == []
        slot = adata.obsm[how.get("spatial_key", "spatial")]
        np.testing.assert_allclose(section.xy, slot * (0.25 if "image_key" in how and len(how) == 1 else 1))
    # coordinates of the crop on the whole
    warned.clear()
    open_sections(adata, image_key="lowres", spatial_key=both["spatial_key"])
    assert any("'spatial_cropped_150_buffer'] of another image" in line for line in warned.messages)


def test_a_whole_file_passes_beside_a_crop_of_it(visium, slide, warned, tmp_path):
    Image.fromarray(slide[0]).save(tmp_path / "slide.png")
    adata = visium(slide[0][90:, 380:])
    adata.uns["spatial"]["S1"]["metadata"]["source_image_path"] = str(tmp_path / "slide.png")
    (section,) = open_sections(adata)
    assert section.image_name.endswith("slide.png")
    assert warned.messages == []


# --- coordinates on the image


def test_coordinates_of_something_else_are_refused_with_what_sets_them_right(visium, slide):
    xy = slide[1]
    wrong = {
        "x is to be the column": xy[:, ::-1],
        r"images'\]\['hires'\]: divide them by its scale, 0.25": xy * 0.25,
        r"images'\]\['lowres'\]: divide them by its scale, 0.05": xy * 0.05,
        "px of a smaller scan: multiply them by 2": xy / 2,
        "mirrored left to right": [1336, 0] + xy * [-1, 1],
        "turned by 180 degrees": [1336, 996] - xy,
    }
    for looks, coordinates in wrong.items():
        with pytest.raises(ValueError, match=rf"outside the image.*look as if they were .*{looks}"):
            open_sections(visium(xy=coordinates))
    (unlooked,) = open_sections(visium(xy=coordinates), check=False)  # the last
    np.testing.assert_array_equal(unlooked.xy, coordinates)


def test_coordinates_in_um(visium, slide):
    adata = visium(xy=slide[1] * 0.4, microns_per_pixel=0.4)
    with pytest.raises(ValueError, match=r"look as if they were um: divide them by 0\.4 um per px"):
        open_sections(adata)


def test_coordinates_beyond_the_image_are_told_what_they_look_like(visium, slide):
    swapped = visium(slide[0].transpose(1, 0, 2), hires=reduced(slide[0].transpose(1, 0, 2), 4))
    swapped.uns["spatial"]["S1"]["images"].pop("lowres")
    with pytest.raises(ValueError, match=r"lie outside the image.*look as if they were swapped"):
        open_sections(swapped)


def test_coordinates_of_the_copy_where_there_is_no_file(visium, slide):
    adata = visium(xy=slide[1] * 0.25)
    adata.uns["spatial"]["S1"]["images"].pop("full")
    with pytest.raises(ValueError, match=r"\['hires'\]: divide them by its scale, 0\.25"):
        open_sections(adata)


def test_spots_on_glass_without_a_way_out(visium, slide, warned):
    corner = np.random.default_rng(0).uniform([10, 10], [300, 140], (len(slide[1]), 2))
    adata = visium(xy=corner)
    adata.obs["in_tissue"] = 1
    with pytest.raises(ValueError, match="100% of the 40 spots lie on bare glass"):
        open_sections(adata)
    del adata.obs["in_tissue"]  # of the whole array many lie on glass
    open_sections(adata)
    assert any("100% of the 40 spots lie on bare glass" in line for line in warned.messages)


@pytest.mark.parametrize("kind", ["gray", "dark", "tissue alone", "tiny", "one colour"])
def test_images_on_which_nothing_can_be_told_pass(kind, visium, slide, warned, monkeypatch):
    full, xy = slide
    if kind == "gray":
        full = np.repeat(full.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    elif kind == "dark":
        full = 255 - full
    elif kind == "tissue alone":
        full, xy = full[TOP + 250 : TOP + 600, LEFT + 250 : LEFT + 600], (xy - [LEFT, TOP]) * 0.4 + 5
    elif kind == "tiny":
        full, xy = reduced(full, 100), xy / 100
    else:
        full = np.full_like(full, 200)
    adata = visium(full, xy=xy, hires=full if kind == "tiny" else reduced(full, 4))
    adata.uns["spatial"]["S1"]["images"].pop("lowres")
    if kind == "tiny":
        adata.uns["spatial"]["S1"]["scalefactors"] |= {"tissue_hires_scalef": 1.0, "microns_per_pixel": 100.0}
        monkeypatch.setattr(hggep.settings, "skip_checks", {"scale_plausible"})
    open_sections(adata)
    assert [line for line in warned.messages if "pixel_range" not in line] == []


def test_spots_that_are_not_under_tissue_are_not_looked_for_there(visium, slide, warned):
    adata = visium()
    adata.obs["in_tissue"] = 1
    adata.obsm["spatial"][:10] = [[20 * i + 5, 20] for i in range(10)]
    adata.obs.iloc[:10, adata.obs.columns.get_loc("in_tissue")] = 0
    (section,) = open_sections(adata)
    np.testing.assert_array_equal(section.obs_rows, np.arange(10, 40))
    assert len(warned.messages) == 1
    assert "10 of 40 spots are left out" in warned.messages[0]


# --- a table of coordinates


def test_named_columns_are_read_by_name(visium, slide):
    xy = slide[1]
    for x, y in (("pxl_col_in_fullres", "pxl_row_in_fullres"), ("x", "y"), ("imagecol", "imagerow"), ("X", "Y")):
        adata = visium()
        table = pd.DataFrame({y: xy[:, 1], x: xy[:, 0]}, index=adata.obs_names)
        for extra in ({}, {"array_row": 3, "array_col": 4}):
            adata.obsm["spatial"] = table.assign(**extra)
            (section,) = open_sections(adata, check=False)
            np.testing.assert_array_equal(section.xy, xy)
    adata.obsm["spatial"] = pd.DataFrame(xy, index=adata.obs_names, columns=["0", "1"])
    np.testing.assert_array_equal(open_sections(adata, check=False)[0].xy, xy)
    for columns in (["first", "y"], ["array_row", "array_col", "other"]):
        table = np.resize(xy, (len(xy), len(columns)))
        adata.obsm["spatial"] = pd.DataFrame(table, index=adata.obs_names, columns=columns)
        with pytest.raises(ValueError, match="which are the column and the row"):
            open_sections(adata)


# --- SpatialData


@pytest.fixture
def sdata(slide, sections):
    """Make a SpatialData as spatialdata-io writes Visium: shapes in px of the full image, copies scaled."""
    sd = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    def make(images=None, xy=None):
        full = slide[0]
        images = images or {"S1_full_image": (full, 1), "S1_hires_image": (reduced(full, 4), 4)}
        table = sections["S1"].copy()
        table.uns.clear()
        table.obs["region"] = pd.Categorical(["spots"] * table.n_obs)
        table.obs["spot"] = table.obs_names.to_numpy()
        shapes = ShapesModel.parse(
            slide[1] if xy is None else xy,
            geometry=0,
            radius=27.0,
            index=table.obs_names.to_numpy(),
            transformations={"global": Identity()},
        )
        return sd.SpatialData(
            images={
                name: Image2DModel.parse(
                    pixels.transpose(2, 0, 1),
                    dims=("c", "y", "x"),
                    transformations={"global": Scale([factor, factor], axes=("x", "y"))},
                )
                for name, (pixels, factor) in images.items()
            },
            shapes={"spots": shapes},
            tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
        )

    return make


def test_spatialdata_of_one_image_passes(sdata, warned):
    open_sections(sdata(), mpp=1.0)
    assert warned.messages == []


@pytest.mark.parametrize("what", TURNED)
def test_spatialdata_whose_images_contradict_is_refused(what, sdata, slide):
    wrong = np.ascontiguousarray(TURNED[what](slide[0]))
    images = {"S1_full_image": (wrong, 1), "S1_hires_image": (reduced(slide[0], 4), 4)}
    with pytest.raises(ValueError) as refused:
        open_sections(sdata(images), mpp=1.0)
    assert what in str(refused.value)
    (section,) = open_sections(sdata(images), mpp=4.0, image_key="S1_hires_image")
    np.testing.assert_allclose(section.xy, slide[1] / 4)


def test_spatialdata_with_shapes_on_glass_is_refused(sdata, slide):
    with pytest.raises(ValueError, match=r"outside the image.*look as if they were swapped"):
        open_sections(sdata(xy=slide[1][:, ::-1]), mpp=1.0)
    with pytest.raises(ValueError, match=r"bare glass.*images\['S1_hires_image'\]: divide them by its scale, 0.25"):
        open_sections(sdata(xy=slide[1] / 4), mpp=1.0)


def test_spatialdata_with_another_image_turned_is_warned_of(sdata, slide, warned):
    other = (reduced(slide[0], 2)[::-1], 2)
    open_sections(sdata({"he": (slide[0], 1), "again": other}), mpp=1.0, image_key="he")
    assert any("mirrored top to bottom" in line for line in warned.messages)


@pytest.mark.parametrize("name", ["wsi_thumbnail", "S1_hires_image"])
def test_a_reduced_image_is_not_taken_silently(name, sdata, slide, warned):
    data = sdata({name: (reduced(slide[0], 4), 4)})
    open_sections(data, mpp=4.0)
    assert any("a reduced copy" in line for line in warned.messages)
    warned.clear()
    open_sections(data, mpp=4.0, image_key=name)
    assert warned.messages == []


def test_a_reduced_image_of_an_anndata_is_not_taken_silently(visium, warned):
    adata = visium()
    adata.uns["spatial"]["S1"]["images"].pop("full")
    open_sections(adata)
    assert any("a reduced copy" in line for line in warned.messages)


# --- real sections


@pytest.fixture(scope="module")
def real(shared):
    """Open real sections by name."""
    kept = hggep.settings.dataset_dir
    hggep.settings.dataset_dir = shared / "data"
    yield lambda *names: hggep.datasets.her2st(list(names)) if names else hggep.datasets.mob()
    hggep.settings.dataset_dir = kept


def test_real_sections_pass_without_a_word(shared, real, warned, sections):
    tiles = hggep.pp.tile(shared / "data" / "wsi" / "CMU-1-Small-Region.svs", spacing_um=50.0)
    open_sections(real("C2") | real() | sections | {"CMU": tiles})
    assert warned.messages == []


@pytest.mark.slow
def test_all_real_sections_pass_without_a_word(real, warned):
    open_sections(real("B4", "C3", "C4", "C5"))
    assert warned.messages == []


def test_real_coordinates_in_px_of_the_copy_or_swapped_are_noticed(real, warned):
    (adata,) = real("C5").values()
    (factors,) = (entry["scalefactors"] for entry in adata.uns["spatial"].values())
    adata.obsm["spatial"] = adata.obsm["spatial"] * factors["tissue_hires_scalef"]
    with pytest.raises(ValueError, match=r"\['hires'\]: divide them by its scale"):
        open_sections(adata)
    adata = real()["MOB1"]
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    open_sections(adata)
    assert any("look as if they were swapped" in line for line in warned.messages)
