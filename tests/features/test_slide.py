import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hggep_sc as hggep
from helpers import alive
from hggep_sc import settings
from hggep_sc.config import Config
from hggep_sc.encoders.weights import load_pretrained
from hggep_sc.features import slide as module
from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.slide import SIGHT, describe_windows, parts_of
from hggep_sc.image import SectionImage
from hggep_sc.nn import ShuffleNetEncoder, Sight
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


def described(image, xy, maps_of=local_maps, fields=(SIZE,), size=SIZE, parts=None, device=CPU, sight=SIGHT):
    """(n, C), of the first field of view, or of several (n, fields, C)."""
    parts = parts or [np.arange(len(xy))]
    centres = [xy[spots] for spots in parts]
    found = list(describe_windows(image, centres, fields, size, [maps_of], batch_size=64, device=device, sight=sight))
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
    xy = 8 * np.round(LAYOUTS["close"] / 8)
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
    np.testing.assert_allclose(described(image, xy, sight=Sight(tile=tile)), whole, atol=1e-5)
    assert len(read) > 2 or np.ptp(xy, axis=0).max() < tile


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return alive(ShuffleNetEncoder()).for_inference().maps


def test_tiles_of_the_trunk_differ_by_what_lies_beyond_their_surroundings(pixels, monkeypatch, trunk):
    """It sees 130 px: the maps of its first stage are the same, those of the last to a fifth of their size."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy, (image, _) = LAYOUTS["cloud"], slide_of(pixels)
    whole = described(image, xy, trunk)
    in_tiles = described(image, xy, trunk, sight=Sight(tile=224))
    stages = [np.split(found, [48, 144], axis=1) for found in (in_tiles, whole)]
    for in_tiles, at_once, tolerance in zip(*stages, (1e-5, 0.03, 0.2), strict=True):
        assert np.abs(in_tiles - at_once).mean() < tolerance * np.abs(at_once).mean()
    wide = described(image, xy, trunk, sight=Sight(surroundings=160, tile=224))
    large = described(image, xy, trunk, sight=Sight(surroundings=160, tile=640))
    np.testing.assert_allclose(wide, large, atol=1e-4 * np.abs(wide).max())


def test_tiles_that_no_window_touches_are_not_read(pixels, monkeypatch):
    """Two groups of spots, far apart."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    xy = np.concatenate([LAYOUTS["close"], LAYOUTS["close"] + [5000, 3000]])
    image, read = slide_of(pixels)
    described(image, xy)
    assert 0 < len(read) < 10
    side = read[0][3] - 2 * SIGHT.surroundings
    assert side <= SIGHT.tile
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


def on_cells(xy):
    """Spots whose windows are made of whole cells, so that either way sees the same cells."""
    return 16 * np.round(xy / 16)


@layouts
def test_both_ways_agree(pixels, monkeypatch, layout):
    """Where surroundings cover what is seen."""
    found, (image, _) = {}, slide_of(pixels)
    for way in ("maps", "crops"):
        monkeypatch.setattr(settings, "feature_route", way)
        found[way] = described(image, on_cells(LAYOUTS[layout]))
    np.testing.assert_allclose(found["maps"], found["crops"], atol=1e-5)


def test_both_ways_agree_for_the_trunk_with_all_that_it_sees(pixels, monkeypatch, trunk):
    found, (image, _) = {}, slide_of(pixels)
    for way in ("maps", "crops"):
        monkeypatch.setattr(settings, "feature_route", way)
        found[way] = described(image, on_cells(LAYOUTS["turned"]), trunk, sight=Sight(surroundings=160))
    np.testing.assert_allclose(found["maps"], found["crops"], atol=1e-4 * np.abs(found["maps"]).max())


def correlations(a, b):
    """Of each feature over spots, NaN where it is constant."""
    a, b = (values - values.mean(axis=0) for values in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def test_both_ways_on_real_tissue(shared, monkeypatch):
    """They are about as alike as crops and those a px beside: where cells begin matters to the trunk, too."""
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    (section,) = open_sections(hggep.datasets.her2st(["C5"]))
    encoder = ShuffleNetEncoder()
    load_pretrained(encoder, shared / "weights" / "shufflenetv2_x0_5_trunk.pth")
    *_, field = fields_of_view(Config(), section.mpp, section.mpp)
    how = {"maps_of": encoder.eval().for_inference().maps, "fields": (field,), "size": 112}
    with section.open_image() as image:
        monkeypatch.setattr(settings, "feature_route", "maps")
        maps = described(image, section.xy, **how)
        monkeypatch.setattr(settings, "feature_route", "crops")
        crops, beside = (described(image, section.xy + px * field / 112, **how) for px in (0, 1))
    alike, yardstick = (np.split(correlations(other, crops), [48, 144]) for other in (maps, beside))
    for of_stage, of_neighbours, least in zip(alike, yardstick, (0.97, 0.87, 0.7), strict=True):
        assert np.nanmedian(of_stage) > least
        assert np.nanmedian(of_stage) > np.nanmedian(of_neighbours) - 0.1


# --- which way

GRID = 150.0 * np.argwhere(np.ones((4, 4)))  # apart at the first scale, close at the second


def test_what_costs_less_is_done(pixels, monkeypatch, caplog):
    """At each scale: counted in px that are read."""
    costs = {}
    for way in ("maps", "crops", "auto"):
        monkeypatch.setattr(settings, "feature_route", way)
        image, read = slide_of(pixels)
        with caplog.at_level(logging.INFO, logger="hggep_sc"):
            described(image, GRID, fields=(SIZE, 4 * SIZE))
        costs[way] = [sum(side**2 for *_, field, side in read if field == scale * side) for scale in (1, 4)]
    (maps, crops), (maps_afar, crops_afar) = zip(costs["maps"], costs["crops"], strict=True)
    assert crops == crops_afar == 16 * (SIZE + 64) ** 2
    assert maps > crops
    assert maps_afar < crops_afar
    assert costs["auto"] == [crops, maps_afar]
    told = (
        f"2 fields of view are encoded, {crops / 1e6:.1f} million px by crops, {maps_afar / 1e6:.1f} million px by maps"
    )
    assert caplog.messages[-1] == f"image slide: {told}"


@ways
def test_a_way_that_is_asked_for_is_taken(pixels, monkeypatch, way):
    monkeypatch.setattr(settings, "feature_route", way)
    image, read = slide_of(pixels)
    described(image, GRID)
    assert ({side for *_, side in read} == {SIZE + 64}) == (way == "crops")


# --- parts


class Blank:
    """An image of nothing, which counts the px that are read of it."""

    name, pixels = "blank", 0

    def read_patches(self, xy, *, field, size):
        self.pixels += len(xy) * size**2
        return np.zeros((len(xy), 3, size, size), dtype=np.uint8)


PLACES = {
    "close": 12.0 * np.argwhere(np.ones((20, 20))),
    "apart": 300.0 * np.argwhere(np.ones((12, 12))),
    "cloud": np.random.default_rng(0).random((300, 2)) * [4000, 900],
    "heaps": np.concatenate([LAYOUTS["close"] + [place, 0] for place in (0, 9000, 20000)]),
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("spots", [30, 2048])
def test_parts_are_a_partition_of_bounded_size(monkeypatch, places, spots):
    """In spots, and in px that are read of them."""
    xy, limit = PLACES[places], 150_000
    monkeypatch.setattr(module, "PART_SPOTS", spots)
    monkeypatch.setattr(module, "PART_PIXELS", limit)
    parts = parts_of(xy, (SIZE, 2 * SIZE), SIZE)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(xy)))
    assert len(parts) > 1
    assert max(map(len, parts)) <= spots
    for part in parts:
        np.testing.assert_array_equal(part, np.sort(part))
        image = Blank()
        described(image, xy[part], lambda pixels: [pixels[:, :1, ::16, ::16].float()], fields=(SIZE, 2 * SIZE))
        assert image.pixels <= limit
    one = parts_of(xy[:1], (SIZE, 2 * SIZE), SIZE)
    assert [list(part) for part in one] == [[0]]


def test_a_spot_that_is_too_much_is_a_part(monkeypatch):
    monkeypatch.setattr(module, "PART_PIXELS", 1)
    assert sorted(map(list, parts_of(LAYOUTS["close"], (SIZE,), SIZE))) == [[spot] for spot in range(16)]


def test_parts_do_not_depend_on_the_order_of_spots(monkeypatch):
    monkeypatch.setattr(module, "PART_SPOTS", 30)

    def places(xy):
        return {frozenset(map(tuple, xy[part])) for part in parts_of(xy, (SIZE,), SIZE)}

    xy = PLACES["cloud"]
    assert places(xy[np.random.default_rng(1).permutation(len(xy))]) == places(xy)


# --- a GPU without room


def test_out_of_memory_halves_the_crops_at_once(pixels, monkeypatch, caplog):
    monkeypatch.setattr(settings, "feature_route", "crops")
    xy, (image, _) = LAYOUTS["apart"], slide_of(pixels)
    expected, sizes = described(image, xy), []

    def crowded(crops):
        sizes.append(len(crops))
        if len(crops) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return local_maps(crops)

    monkeypatch.setattr(module, "PIXELS", 10**9)  # all at once
    np.testing.assert_allclose(described(image, xy, crowded), expected, atol=1e-6)
    assert sizes == [16, 8, 4, 4, 4, 4]
    assert ["16 crops at once; going on with 8" in message for message in caplog.messages] == [True, False]
