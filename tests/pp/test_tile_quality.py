"""Quality of tiles, on a drawn slide with one corner out of focus, a stroke of ink and a fold."""

import numpy as np
import pytest
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import hggep_sc as hggep
from hggep_sc.datasets._histology import draw
from hggep_sc.image.quality import sharpness
from hggep_sc.section import image_of

SPACING = 60.0  # um and px
INK = np.array([30, 60, 160])  # as of the tissue mask's tests


@pytest.fixture(scope="module")
def drawn():
    return draw(np.random.default_rng(3), 500.0).image


@pytest.fixture(scope="module")
def planted(drawn):
    """The slide with its faults, and masks of where these are."""
    size = len(drawn)
    y, x = np.mgrid[:size, :size]
    middle = size // 2
    where = {
        "blur": (x < middle) & (y < middle),
        "pen": (np.abs(y - 0.4 * size) < 50) & (x > middle),
        "fold": (np.abs(x - y * 0.2 - 0.3 * size) < 40) & (y > middle + 80),
    }
    glass = np.array([240.0, 238.0, 241.0])
    slide = drawn.astype(float)
    threefold = slide * (slide / glass) ** 2  # light that passes the tissue three times
    slide = np.where(where["fold"][..., None], threefold, slide)
    blurred = ndimage.gaussian_filter(slide, (4, 4, 0))
    slide = np.where(where["blur"][..., None], blurred, slide)
    slide[where["pen"]] = 0.05 * slide[where["pen"]] + 0.95 * INK
    return np.clip(np.rint(slide), 0, 255).astype(np.uint8), where


@pytest.fixture(scope="module")
def whole(drawn):
    """A mask of all that is drawn, as ink is no tissue."""
    return hggep.pp.tissue_mask(drawn, mpp=1.0)


def shares(tiles, mask):
    """How much of each tile a fault takes."""
    padded = np.pad(mask, int(SPACING))
    half = int(SPACING / 2)
    return np.array(
        [
            padded[y + half : y + half + int(SPACING), x + half : x + half + int(SPACING)].mean()
            for x, y in tiles.obsm["spatial"].astype(int)
        ]
    )


def test_planted_faults_are_found(planted, whole):
    slide, where = planted
    tiles = hggep.pp.tile(slide, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    label = tiles.obs["hggep_quality"]
    assert label.cat.categories.tolist() == ["good", "blur", "pen", "fold"]
    share = {name: shares(tiles, mask) for name, mask in where.items()}
    clean = sum(share.values()) == 0
    assert clean.sum() > 60
    assert (label[clean] == "good").mean() > 0.95
    for name in where:
        others = sum(values for other, values in share.items() if other != name)
        much = (share[name] > 0.7) & (others == 0)
        assert much.sum() >= 5, name
        assert (label[much] == name).mean() > 0.8, name


def test_a_clean_slide_is_good(drawn, whole):
    tiles = hggep.pp.tile(drawn, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    assert (tiles.obs["hggep_quality"] == "good").mean() > 0.97


def test_crowded_nuclei_are_no_fold(drawn, whole):
    """Three times the haematoxylin in a strip, which is as dark as a fold, without the eosin of one."""
    nuclear = np.array([0.65, 0.70, 0.29])
    strip = np.abs(np.arange(len(drawn)) - len(drawn) // 2) < 60
    dark = drawn * np.exp(-1.2 * strip[None, :, None] * nuclear)
    assert dark[:, strip].mean() < 0.6 * drawn[:, strip].mean()
    slide = np.rint(dark).astype(np.uint8)
    tiles = hggep.pp.tile(slide, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    assert (tiles.obs["hggep_quality"] == "fold").mean() < 0.02


def test_several_faults_of_a_tile(planted, whole):
    """Pen comes first, whatever lies below."""
    slide, where = planted
    inked = slide.copy()
    inked[where["fold"]] = INK
    tiles = hggep.pp.tile(inked, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    assert (tiles.obs["hggep_quality"][shares(tiles, where["fold"]) > 0.5] == "pen").all()


def test_thresholds(planted, whole):
    slide, _ = planted

    def found(**limits):
        tiles = hggep.pp.tile(slide, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=limits)
        return tiles.obs["hggep_quality"].value_counts()

    usual = found(blur=0.03, pen=0.1, fold=0.2)
    assert usual.equals(found())
    assert found(blur=0)["blur"] == 0
    assert found(blur=1e9)["good"] == 0
    assert found(pen=1)["pen"] == 0 < usual["pen"]
    assert found(fold=1)["fold"] == 0 < usual["fold"]


def test_sharpness_by_hand(drawn):
    image = image_of(drawn, mpp=1.0)
    with image.opener() as opened:
        found = sharpness(opened, np.array([[500.0, 500.0], [430.0, 610.0]]), 60.0, 1.0)
    for value, (x, y) in zip(found, [(500, 500), (430, 610)], strict=True):
        density = -np.log((drawn[y - 30 : y + 30, x - 30 : x + 30, 1] + 1) / 256)
        inner = density[1:-1, 1:-1]
        around = density[:-2, 1:-1] + density[2:, 1:-1] + density[1:-1, :-2] + density[1:-1, 2:]
        assert value == pytest.approx((around - 4 * inner).var() / density.var())


def test_stain_does_not_matter_for_focus(drawn, whole):
    """Half of the dye: the same tiles are as sharp."""
    pale = np.rint(241 * (drawn / 241.0) ** 0.5).astype(np.uint8)
    tiles = hggep.pp.tile(pale, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    assert (tiles.obs["hggep_quality"] != "blur").all()


def test_left_out_by_default(drawn):
    assert "hggep_quality" not in hggep.pp.tile(drawn, spacing_um=SPACING, mpp=1.0).obs


def test_coarse_images_are_not_judged_for_focus(drawn, warned):
    blurred = ndimage.gaussian_filter(drawn, (6, 6, 0))
    tiles = hggep.pp.tile(blurred, spacing_um=4 * SPACING, mpp=4.0, quality=True)
    assert "4 um per px: whether it is in focus" in warned.text
    assert (tiles.obs["hggep_quality"] != "blur").all()


def test_spatialdata(planted, whole):
    slide, _ = planted
    of_array = hggep.pp.tile(slide, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    sdata = SpatialData(images={"he": Image2DModel.parse(slide.transpose(2, 0, 1), dims=("c", "y", "x"))})
    hggep.pp.tile(sdata, spacing_um=SPACING, mpp=1.0, tissue=whole, quality=True)
    found = sdata.tables["table_tiles"].obs["hggep_quality"]
    assert found.tolist() == of_array.obs["hggep_quality"].tolist()


def test_the_real_slide_is_good(shared):
    """It is in focus and without ink; its densest rim may look like a fold."""
    label = hggep.pp.tile(shared / "data/wsi/CMU-1-Small-Region.svs", quality=True).obs["hggep_quality"]
    assert set(label) <= {"good", "fold"}
    assert (label == "good").mean() > 0.95


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("blur", TypeError, "quality='blur' must be True, False or a dict of thresholds"),
        (1, TypeError, "quality=1 must be True, False or a dict"),
        ({"ink": 1}, ValueError, "quality= names ink; there are 'blur', 'pen', 'fold'"),
        ({"pen": "much"}, TypeError, r"quality\['pen'\]='much' must be a number"),
        ({"pen": -1}, ValueError, r"quality\['pen'\]=-1 must be a finite number of at least 0"),
    ],
)
def test_bad_input(drawn, given, error, message):
    with pytest.raises(error, match=message):
        hggep.pp.tile(drawn, mpp=1.0, quality=given)
