import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hggep_sc as hggep
from helpers import alive
from hggep_sc import settings
from hggep_sc.config import Config
from hggep_sc.features import slide as module
from hggep_sc.features.describe import DIHEDRAL, PLAIN
from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.slide import describe_windows, in_view, parts_of
from hggep_sc.features.weights import load_pretrained
from hggep_sc.image import SectionImage
from hggep_sc.nn import ShuffleNetEncoder
from hggep_sc.section import open_sections
from plain_windows import averaged_by_loop

CPU = torch.device("cpu")
SIZE, MARGIN = 32, 160  # px of a window, and laid out around the image
ways = pytest.mark.parametrize("way", ["maps", "crops"])


def turned_grid(spacing, turn):
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return 200 + (spacing * np.argwhere(np.ones((4, 4))) - 1.5 * spacing) @ rotation


LAYOUTS = {  # of spots in an image of 400 x 352 px
    "close": turned_grid(9.3, 0),
    "apart": turned_grid(70, 0),
    "turned": turned_grid(41, 0.4),
    "cloud": np.random.default_rng(0).uniform(20, 330, size=(25, 2)),
    "one": np.array([[123.4, 210.9]]),
    "at the border": np.array([[0, 0], [3.5, 350], [400, 100.2], [390, 352], [200, 1]]),
    "beyond the border": np.array([[-30, -20], [-100.5, 200], [430, 100], [470.2, 420], [200, 371]]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def slide_of(pixels):
    """An image, and the squares that are read of it: their centre and side, px."""
    image, squares = SectionImage.from_array(pixels, name="slide"), []
    read = image.read_patches

    def noted(xy, *, field, size):
        squares.extend((x, y, field, size) for x, y in np.asarray(xy))
        return read(xy, field=field, size=size)

    image.read_patches = noted
    return image, squares


@pytest.fixture(scope="module")
def pixels():
    """Colours that change over a few px, and over hundreds."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.uniform(20, 230, size=(11, 13, 3)), np.ones((32, 32, 1)))[:352, :400]
    return np.clip(coarse + rng.normal(0, 20, size=(352, 400, 3)), 0, 255).astype(np.uint8)


def local_maps(pixels):
    """Maps of cells of 4 and of 16 px that see 12 px more, by a convolution that no turn leaves as it is."""
    kernel = torch.randn(3, 3, 25, 25, generator=torch.Generator().manual_seed(0)) / 25
    seen = F.conv2d(pixels.float() / 255, kernel - kernel.mean((2, 3), keepdim=True), padding=12).abs()
    return [F.avg_pool2d(seen[:, :2], 4), F.avg_pool2d(seen, 16)]


def described(image, xy, maps_of=local_maps, fields=(SIZE,), size=SIZE, parts=None, device=CPU):
    """(n, C), of the first field of view, or of several (n, fields, C)."""
    parts = parts or [np.arange(len(xy))]
    centres = [xy[spots] for spots in parts]
    found = list(describe_windows(image, centres, fields, size, [maps_of], batch_size=64, device=device))
    whole = torch.cat([part for (part,) in found])[np.argsort(np.concatenate(parts))].numpy()
    return whole[:, 0] if len(fields) == 1 else whole


def around(pixels):
    """The image, and what is taken for its surroundings."""
    background = SectionImage.from_array(pixels, name="slide").background
    laid_out = np.empty((pixels.shape[0] + 2 * MARGIN, pixels.shape[1] + 2 * MARGIN, 3), dtype=np.uint8)
    laid_out[:] = background
    laid_out[MARGIN:-MARGIN, MARGIN:-MARGIN] = pixels
    return laid_out


def maps_by_hand(square, maps_of=local_maps):
    with torch.no_grad():
        maps = maps_of(torch.from_numpy(square.transpose(2, 0, 1).copy())[None])
    return [of_stage[0].numpy() for of_stage in maps]


# --- against loops over cells


@layouts
def test_maps_are_those_of_the_whole_slide(pixels, monkeypatch, layout):
    """Computed at once, of the slide and what is around it."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy, laid_out = LAYOUTS[layout], around(pixels)
    side = 16 * (max(laid_out.shape) // 16)
    square = np.full((side, side, 3), laid_out[0, 0])
    square[: laid_out.shape[0], : laid_out.shape[1]] = laid_out[:side, :side]
    maps = maps_by_hand(square)
    expected = [averaged_by_loop(maps, spot + MARGIN - SIZE / 2, SIZE, side) for spot in xy]
    found = described(slide_of(pixels)[0], xy)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(xy) == 1 or found.std(axis=0).min() > 0.001


@layouts
def test_crops_are_windows_with_what_is_around_them(pixels, monkeypatch, layout):
    """Each cut from the array, to the px, and seen by itself."""
    monkeypatch.setattr(settings, "feature_route", "crops")
    xy, laid_out, side = LAYOUTS[layout], around(pixels), 96
    expected = []
    for spot in xy:
        x, y = np.floor(spot - side / 2 + 0.5).astype(int) + MARGIN
        maps = maps_by_hand(laid_out[y : y + side, x : x + side])
        expected.append(averaged_by_loop(maps, np.full(2, (side - SIZE) / 2), SIZE, side))
    np.testing.assert_allclose(described(slide_of(pixels)[0], xy), expected, atol=1e-5)


@ways
def test_each_field_of_view_is_seen_at_its_own_scale(pixels, monkeypatch, way):
    """One of twice the size is what the first is in an image of half the size."""
    monkeypatch.setattr(settings, "feature_route", way)
    xy = 8 * np.round(LAYOUTS["apart"] / 8)
    half = pixels.reshape(176, 2, 200, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    image = SectionImage.from_levels([pixels, half], name="slide")
    found = described(image, xy, fields=(SIZE, 2 * SIZE))
    for i, (one, places) in enumerate(((pixels, xy), (half, xy / 2))):
        np.testing.assert_allclose(found[:, i], described(slide_of(one)[0], places), atol=1e-5)


@ways
def test_between_the_scales_of_the_image(pixels, monkeypatch, way):
    """Enlarged by 1.6, to the rounding of pixels, as the image that was enlarged at once."""
    monkeypatch.setattr(settings, "feature_route", way)
    xy = 10 * np.round(LAYOUTS["turned"] / 10)  # on whole px of the enlarged image too
    side, step = 640, 0.625
    (enlarged,) = slide_of(pixels)[0].read_patches([[200, 200]], field=side * step, size=side)
    found = described(slide_of(pixels)[0], xy, fields=(SIZE * step,))
    expected = described(slide_of(enlarged.transpose(1, 2, 0))[0], xy / step)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert expected.std(axis=0).min() > 0.02


# --- tiles


@pytest.mark.parametrize("tile", [64, 96, 224])
@layouts
def test_where_tiles_end_is_not_seen(pixels, monkeypatch, tile, layout):
    """By what looks no farther than the surroundings that a tile has."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy, (image, read) = LAYOUTS[layout], slide_of(pixels)
    whole = described(image, xy)
    assert len(read) == 1
    monkeypatch.setattr(module, "TILE", tile)
    np.testing.assert_allclose(described(image, xy), whole, atol=1e-5)
    assert len(read) > 2 or np.ptp(xy, axis=0).max() < tile


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return alive(ShuffleNetEncoder()).for_inference().maps


def test_tiles_of_the_trunk_differ_by_what_lies_farther_away_than_its_surroundings(pixels, monkeypatch, trunk):
    """By a twentieth of a feature's spread among spots, at most on average, and hardly in the first stage."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy, (image, _) = LAYOUTS["cloud"], slide_of(pixels)
    whole = described(image, xy, trunk)
    monkeypatch.setattr(module, "TILE", 128)
    apart = np.abs(described(image, xy, trunk) - whole).mean(axis=0) / whole.std(axis=0)
    print("STAT", [part.mean() for part in np.split(apart, [48, 144])], apart.max())
    monkeypatch.setattr(module, "SURROUNDINGS", 160)  # more than the trunk sees
    wide = described(image, xy, trunk)
    monkeypatch.setattr(module, "TILE", 640)
    np.testing.assert_allclose(wide, described(image, xy, trunk), atol=1e-4)


def test_tiles_that_no_window_touches_are_not_read(pixels, monkeypatch):
    """Two groups of spots, far apart."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy = np.concatenate([LAYOUTS["close"], LAYOUTS["close"] + [5000, 3000]])
    image, read = slide_of(pixels)
    described(image, xy)
    assert 0 < len(read) < 10
    side = read[0][3] - 2 * module.SURROUNDINGS
    assert side <= module.TILE
    for x, y, _, _ in read:
        inside = np.abs(xy - [x, y]) < (side + SIZE) / 2
        assert inside.all(axis=1).any()
    assert len(read) < 0.3 * (5000 / side) * (3000 / side)


def test_spots_in_parts_are_described_as_together(pixels, monkeypatch):
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy, (image, _) = LAYOUTS["cloud"], slide_of(pixels)
    parts = np.split(np.random.default_rng(1).permutation(len(xy)), [1, 9])
    np.testing.assert_allclose(described(image, xy, parts=parts), described(image, xy), atol=1e-5)


# --- both ways


def on_cells(xy, size=SIZE):
    """Spots whose windows are made of whole cells, so that either way sees the same cells."""
    return 16 * np.round((xy - size / 2) / 16) + size / 2


@layouts
def test_both_ways_agree(pixels, monkeypatch, layout):
    """Where surroundings cover what is seen."""
    found, (image, _) = {}, slide_of(pixels)
    for way in ("maps", "crops"):
        monkeypatch.setattr(settings, "feature_route", way)
        found[way] = described(image, on_cells(LAYOUTS[layout]))
    np.testing.assert_allclose(found["maps"], found["crops"], atol=1e-5)


def test_both_ways_agree_for_the_trunk_with_all_that_it_sees(pixels, monkeypatch, trunk):
    monkeypatch.setattr(module, "SURROUNDINGS", 160)
    found, (image, _) = {}, slide_of(pixels)
    for way in ("maps", "crops"):
        monkeypatch.setattr(settings, "feature_route", way)
        found[way] = described(image, on_cells(LAYOUTS["turned"]), trunk)
    np.testing.assert_allclose(found["maps"], found["crops"], atol=1e-4 * np.abs(found["maps"]).max())
