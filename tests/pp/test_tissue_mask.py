import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import hggep_sc as hggep
from helpers import make_adata
from hggep_sc.image.tissue import TissueMask

MPP = 4.0
Y, X = np.mgrid[:600, :800]
STROKE = np.abs(Y - 0.4 * X - 20) < 20  # beside the tissue
INKS = {
    "blue": (30, 60, 160),
    "light blue": (90, 140, 210),
    "green": (30, 140, 80),
    "black": (25, 25, 28),
    "gray": (60, 60, 68),
    "red": (215, 35, 60),
    "bright red": (230, 40, 40),
}


def found(pixels, mpp=MPP):
    """The mask at the image's own resolution."""
    mask = hggep.pp.tissue_mask(pixels, mpp=mpp)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return mask.contains(np.column_stack([x.ravel(), y.ravel()]) + 0.5).reshape(x.shape)


def require_alike(mask, truth, recall=0.95, precision=0.9):
    both = (mask & truth).sum()
    assert both / truth.sum() >= recall
    assert both / mask.sum() >= precision


def density(image, factor):
    """The slide with the dyes `factor` times as strong, and the camera's noise as it was."""
    glass = np.array([240.0, 238.0, 241.0])
    return glass * (np.maximum(image, 1) / glass) ** factor + np.random.default_rng(1).normal(0, 2, image.shape)


class TestSyntheticSlides:
    def test_plain(self, slide, pixels):
        require_alike(found(pixels(slide[0])), slide[1])

    def test_scale_unknown(self, slide, pixels):
        require_alike(found(pixels(slide[0]), mpp=None), slide[1])

    @pytest.mark.parametrize("strength", [0.3, 2.5])
    def test_faint_and_dark(self, slide, pixels, strength):
        require_alike(found(pixels(density(slide[0], strength))), slide[1])

    @pytest.mark.parametrize("light", [0.6, 1.2])
    def test_gray_and_overexposed(self, slide, pixels, light):
        require_alike(found(pixels(slide[0] * light)), slide[1])

    def test_uneven_light(self, slide, pixels):
        require_alike(found(pixels(slide[0] * (1 - 0.3 * X / 800)[..., None])), slide[1])

    @pytest.mark.parametrize("ink", INKS)
    def test_ink_on_glass(self, slide, pixels, ink):
        cover = ndimage.gaussian_filter((STROKE & ~slide[1]).astype(float), 1)[..., None]
        mask = found(pixels(slide[0] * (1 - cover) + np.array(INKS[ink]) * cover))
        require_alike(mask, slide[1])
        assert not mask[STROKE & (np.hypot(X - 400, Y - 300) > 250)].any()

    @pytest.mark.parametrize("ink", INKS)
    def test_ink_alone(self, pixels, ink):
        glass = np.full((600, 800, 3), 240.0) + np.random.default_rng(0).normal(0, 2, (600, 800, 3))
        cover = ndimage.gaussian_filter(STROKE.astype(float), 1)[..., None]
        assert not found(pixels(glass * (1 - cover) + np.array(INKS[ink]) * cover)).any()

    def test_fold_is_tissue(self, slide, pixels):
        fold = (np.abs(X - Y - 100) < 8) & slide[1]
        folded = np.where(fold[..., None], density(slide[0], 3.0), slide[0])
        mask = found(pixels(folded))
        require_alike(mask, slide[1])
        assert mask[fold & (np.hypot(X - 400, Y - 300) < 180)].all()

    def test_borders_are_not(self, slide, pixels):
        image = slide[0].copy()
        image[:40], image[:, -50:], image[-20:] = 0, (9, 3, 8), (115, 112, 110)
        image[:, :30] = 255
        require_alike(found(pixels(image)), slide[1])

    def test_smear_of_eosin_is_not(self, slide, pixels):
        smear = 0.15 * np.exp(-((X - 650) ** 2 + (Y - 400) ** 2) / 2 / 150**2)
        image = slide[0] * np.exp(-smear[..., None] * [0.1, 1.0, 0.4])
        require_alike(found(pixels(image)), slide[1])

    def test_specks_and_gaps(self, slide, pixels):
        """Dust of 80 um goes, a vessel of 120 um stays inside, one of 0.4 mm does not."""
        image, truth = slide[0].copy(), slide[1].copy()
        dust, vessel = np.hypot(X - 700, Y - 100) < 10, np.hypot(X - 330, Y - 300) < 15
        lumen = np.hypot(X - 460, Y - 300) < 50
        image[dust] = image[290:310, 300:320].reshape(-1, 3)[: dust.sum()]
        image[vessel | lumen] = 240
        mask = found(pixels(image))
        require_alike(mask, truth & ~lumen)
        assert mask[vessel].all()
        assert not mask[np.hypot(X - 460, Y - 300) < 35].any()
        assert not mask[dust].any()

    @pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
    def test_no_glass_in_sight(self, slide, pixels, strength):
        assert found(pixels(density(slide[0], strength)[180:420, 280:520])).all()

    @pytest.mark.parametrize("noise", [0, 2, 6])
    def test_no_tissue(self, pixels, noise, warned):
        glass = 236.0 + np.random.default_rng(0).normal(0, noise, (600, 800, 3))
        assert not found(pixels(glass)).any()
        assert "no tissue" in warned.text


class TestInputs:
    def test_file_says_its_scale(self, slide, pixels, slide_file):
        mask = hggep.pp.tissue_mask(slide_file)
        assert mask.mpp == pytest.approx(MPP)
        assert mask.mask.shape == (300, 400)
        assert np.array_equal(mask.mask, hggep.pp.tissue_mask(pixels(slide[0]), mpp=MPP).mask)

    def test_anndata_in_its_own_coordinates(self, slide, pixels):
        """A copy at half the resolution: coordinates stay those of obsm."""
        adata = make_adata()
        half = pixels(slide[0])[::2, ::2]
        adata.uns["spatial"]["A"]["images"] = {"hires": half}
        adata.uns["spatial"]["A"]["scalefactors"] = {"tissue_hires_scalef": 0.5, "microns_per_pixel": MPP}
        mask = hggep.pp.tissue_mask(adata)
        assert mask.mpp == pytest.approx(MPP)
        assert mask.contains([[400, 300], [400, 480], [400, 540], [1e9, 0]]).tolist() == [True, True, False, False]

    def test_spatialdata(self, slide, pixels):
        sd = pytest.importorskip("spatialdata")
        image = sd.models.Image2DModel.parse(pixels(slide[0]).transpose(2, 0, 1), dims=("c", "y", "x"))
        sdata = sd.SpatialData(images={"he": image, "other": image})
        with pytest.raises(ValueError, match="image_key"):
            hggep.pp.tissue_mask(sdata)
        expected = hggep.pp.tissue_mask(pixels(slide[0]), mpp=MPP)
        assert np.array_equal(hggep.pp.tissue_mask(sdata, image_key="he", mpp=MPP).mask, expected.mask)

    @pytest.mark.parametrize(
        ("data", "keywords", "error", "match"),
        [
            (None, {}, TypeError, "an image is expected"),
            ("gone.svs", {}, FileNotFoundError, "gone.svs"),
            (np.zeros((4, 4, 3), np.uint8), {"mpp": -1}, ValueError, "`mpp`"),
            (np.zeros((4, 4, 3), np.uint8), {"image_key": "he"}, ValueError, "`image_key`"),
            (np.zeros((4, 4, 3), np.uint8), {"library_id": "A"}, ValueError, "`library_id`"),
            (np.zeros((5, 4, 7), np.uint8), {}, ValueError, "channels"),
        ],
    )
    def test_refused(self, data, keywords, error, match):
        with pytest.raises(error, match=match):
            hggep.pp.tissue_mask(data, **keywords)


def test_share_counts_pixels():
    """Squares that lie on pixels' edges: the mean of the mask, with nothing outside."""
    rng = np.random.default_rng(0)
    truth = rng.random((12, 9)) < 0.5
    mask = TissueMask(truth, np.array([10.0, 20.0]), None)
    padded = np.pad(truth, 8)
    for column, row in rng.integers(-2, 10, (30, 2)):
        # 4 columns and 2 rows of the mask
        share = mask.share([[10.0 * (column + 2), 20.0 * (row + 1)]], 40.0)
        assert share[0] == pytest.approx(padded[row + 8 : row + 10, column + 8 : column + 12].mean())


def test_share_cuts_pixels():
    mask = TissueMask(np.array([[True, False]]), np.array([10.0, 10.0]), None)
    assert mask.share([[9.0, 5.0]], 4.0) == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["B4", "C3", "MOB1", "MOB2", "MOB3"])
def test_sequenced_spots_lie_in_it(shared, monkeypatch, name):
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    study = hggep.datasets.mob if name.startswith("MOB") else hggep.datasets.her2st
    section = study(name)[name]
    mask = hggep.pp.tissue_mask(section)
    assert mask.contains(section.obsm["spatial"]).mean() >= 0.97
    assert mask.mask.mean() < 0.3
    if name.startswith("MOB"):
        features = pd.read_csv(shared / "data" / "mob" / f"alignment_table_{name}.tsv", sep="\t")
        bare = features.loc[features["selected"] != 1, ["pixel_x", "pixel_y"]]
        assert mask.contains(bare).mean() <= 0.02
