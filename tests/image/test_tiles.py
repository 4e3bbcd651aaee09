"""Tiles of lazy images: how often they are decoded, what is kept of them, and what is never read."""

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import tifffile
from tifffile.zarr import ZarrTiffStore

import hggep_sc as hggep
from hggep_sc import settings
from hggep_sc.features.patches import read_patches
from hggep_sc.image import SectionImage

FIELDS = (80.0, 160.0, 240.0, 480.0)
SIZE = 56


def picture(height: int, width: int) -> np.ndarray:
    """Every px differs from its neighbours, and a quarter of it is of no use to a neighbour."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def half(pixels: np.ndarray) -> np.ndarray:
    height, width = (side // 2 for side in pixels.shape[:2])
    return pixels.reshape(height, 2, width, 2, 3).mean(axis=(1, 3)).astype(np.uint8)


def raster(height: int, width: int, spacing: int = 100) -> np.ndarray:
    """Spots row by row, from edge to edge."""
    x, y = np.meshgrid(np.arange(20, width, spacing), np.arange(20, height, spacing))
    return np.column_stack([x.ravel(), y.ravel()]).astype(float)


def everywhere(height: int, width: int) -> "hggep.pp.TissueMask":
    return hggep.pp.TissueMask(np.ones((1, 1), dtype=bool), np.array([width, height]), 1.0)


class CountedArray:
    """A chunked array that notes the windows read from it."""

    def __init__(self, pixels: np.ndarray, chunks: tuple[int, ...] | None) -> None:
        self.pixels, self.chunks = pixels, chunks
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.read: Counter[tuple[tuple[int, int], ...]] = Counter()

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        self.read[tuple((s.start, s.stop) for s in window[:2])] += 1
        return self.pixels[window]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each tile of a TIFF is decoded, by level and place."""
    counts: Counter = Counter()
    get = ZarrTiffStore.get

    async def counting(self, key, *args, **kwargs):
        if ".z" not in key and not key.endswith(".json"):
            counts[id(self), key] += 1
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(ZarrTiffStore, "get", counting)
    return counts


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 2048 x 3072 px and its half, in tiles of 256 px, and its pixels."""
    levels = [picture(2048, 3072)]
    levels.append(half(levels[0]))
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        common = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
        writer.write(levels[0], subifds=1, **common)
        writer.write(levels[1], subfiletype=1, **common)
    return path, levels


@pytest.mark.parametrize("batch", [64, 512])
@pytest.mark.parametrize("order", ["rows", "columns", "random within a batch"])
def test_each_tile_is_decoded_about_once_in_a_pass(slide, decoded, batch: int, order: str) -> None:
    path, levels = slide
    xy = raster(2048, 3072)
    if order == "columns":
        xy = xy[np.lexsort((xy[:, 1], xy[:, 0]))]
    rng = np.random.default_rng(1)
    memory = SectionImage.from_levels(levels, name="memory")
    with SectionImage.from_file(path) as image:
        memory.__dict__["background"] = image.background
        decoded.clear()
        for start in range(0, len(xy), batch):
            part = xy[start : start + batch]
            part = rng.permutation(part) if order.startswith("random") else part
            # pixel by pixel what the arrays that the file was written from give
            np.testing.assert_array_equal(
                read_patches(image, part, FIELDS, SIZE), read_patches(memory, part, FIELDS, SIZE)
            )
    # the thumbnail that the background was sought in has read the second level
    assert len(decoded) == 12 * 8
    assert max(decoded.values()) == 1


@pytest.mark.slow
def test_a_prediction_decodes_each_tile_about_once(slide, decoded, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead by threads; the cache holds a third of the slide, and not a row of the squares that are encoded."""
    monkeypatch.setattr(settings, "tile_cache", 2048 * 3072)
    path, _ = slide
    spots = hggep.pp.tile(path, spacing_um=60, mpp=1.0, model=trained, tissue=everywhere(2048, 3072))
    assert spots.n_obs > 1500
    decoded.clear()
    hggep.tl.predict(spots, trained, average_flips=False, device="cpu", progress=False)
    assert len(decoded) >= 12 * 8
    assert decoded.total() <= 1.5 * len(decoded)


def test_a_pass_with_a_cache_of_two_rows_of_tiles(slide, decoded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "tile_cache", 2 * 12 * 256**2 * 3 + 2 * 6 * 256**2 * 3)
    path, _ = slide
    xy = raster(2048, 3072)
    with SectionImage.from_file(path) as image:
        for start in range(0, len(xy), 31):
            read_patches(image, xy[start : start + 31], FIELDS[:2], SIZE)
    assert sum(decoded.values()) <= 1.3 * len(decoded)


def test_the_cache_stays_within_its_bound(slide, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = 256**2 * 3
    xy = np.random.default_rng(2).uniform([0, 0], [3072, 2048], (60, 2))
    with SectionImage.from_file(slide[0]) as image:
        expected = read_patches(image, xy, FIELDS, SIZE)
        assert image._decoded.currsize > 50 * tile  # the bound is far
    monkeypatch.setattr(settings, "tile_cache", 5 * tile + 17)
    held = []
    with SectionImage.from_file(slide[0]) as image:
        for row, spot in enumerate(xy):
            np.testing.assert_array_equal(read_patches(image, spot[None], FIELDS, SIZE)[0], expected[row])
            held.append(sum(kept.nbytes for kept in image._decoded.values()))
        assert max(held) == 5 * tile
    assert not image._decoded  # closed with the image


@pytest.mark.parametrize("cache", [0, 256**2 * 3 - 1])
def test_tiles_beyond_the_bound_are_read_by_windows(slide, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "tile_cache", cache)
    monkeypatch.setattr(settings, "skip_checks", {"pixel_range"})  # which looks at the whole
    array = CountedArray(slide[1][0], (256, 256, 3))
    image = SectionImage.from_array(array, name="a")
    image.read_patches([[1000, 1000], [1004, 1000]], field=80, size=80)
    assert array.read == {((960, 1040), (960, 1040)): 1, ((960, 1040), (964, 1044)): 1}
    assert not image._decoded


@pytest.mark.parametrize(
    ("chunks", "edges"),
    [
        (None, ([0, 256, 512, 600], [0, 256, 300])),  # no chunks
        ((512, 512, 3), ([0, 512, 600], [0, 300])),
        ((100, 130, 3), ([0, 130, 260, 390, 520, 600], [0, 200, 300])),  # small ones: two at once
        (((100, 200), (250, 50, 300), (3,)), ([0, 250, 300, 600], [0, 100, 300])),
        ((16, 600, 3), ([0, 600], [0, 256, 300])),  # strips
        ((0x7FFFFFFF, 600, 3), ([0, 600], [0, 300])),
    ],
)
def test_tiles_are_the_chunks(chunks, edges) -> None:
    pixels = picture(300, 600)
    array = CountedArray(pixels, chunks)
    image = SectionImage.from_array(array, name="a")
    assert [list(along) for along in image._levels[0].edges] == list(edges)
    xy = np.random.default_rng(3).uniform([-20, -20], [620, 320], (40, 2))
    memory = SectionImage.from_array(pixels, name="a")
    for field in (24, 37.7, 200):
        np.testing.assert_array_equal(
            image.read_patches(xy, field=field, size=24), memory.read_patches(xy, field=field, size=24)
        )
    assert max(array.read.values()) == 1
    assert set(array.read) <= {(y, x) for y in itertools.pairwise(edges[1]) for x in itertools.pairwise(edges[0])}


@pytest.mark.parametrize("axes", ["cyx", "yxc"])
def test_chunks_of_dask_arrays_are_computed_once(axes: str) -> None:
    pixels = picture(700, 900)
    stored = pixels if axes == "yxc" else pixels.transpose(2, 0, 1)
    counts: Counter = Counter()

    def noted(block: np.ndarray, block_info=None) -> np.ndarray:
        counts[block_info[0]["chunk-location"]] += 1
        return block

    sides = [{"y": (256, 256, 188), "x": (300, 300, 300), "c": (3,)}[axis] for axis in axes]
    lazy = da.from_array(stored, chunks=tuple(sides)).map_blocks(noted, dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))
    image = SectionImage.from_array(lazy, name="a")
    xy = raster(700, 900, 60)
    for start in range(0, len(xy), 16):
        image.read_patches(xy[start : start + 16], field=90, size=45)
    assert len(counts) == 9
    assert set(counts.values()) == {1}


def test_threads_share_what_one_of_them_decodes(slide, decoded) -> None:
    path, levels = slide
    xy = np.random.default_rng(4).uniform([100, 100], [2900, 1900], (200, 2))
    expected = SectionImage.from_array(levels[0], name="a").read_patches(xy, field=80, size=80)
    start = threading.Barrier(4)

    def read(_: int) -> np.ndarray:
        start.wait()
        return image.read_patches(xy, field=80, size=80)

    with SectionImage.from_file(path) as image, ThreadPoolExecutor(4) as pool:
        for patches in pool.map(read, range(4)):
            np.testing.assert_array_equal(patches, expected)
    assert set(decoded.values()) == {1}


def test_a_tile_that_fails_is_tried_again(slide) -> None:
    array = CountedArray(slide[1][0], (256, 256, 3))
    image = SectionImage.from_array(array, name="a")
    array.pixels = None
    with pytest.raises(ValueError, match="cannot be read"):
        image.read_patches([[100, 100]], field=10, size=10)
    array.pixels = slide[1][0]
    found = image.read_patches([[100, 100]], field=10, size=10)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, array.pixels[95:105, 95:105])
