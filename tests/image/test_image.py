"""Patches, thumbnails and background of arrays and pyramids."""

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from scipy import ndimage

from hggep_sc import settings
from hggep_sc.image import SectionImage, _image


def smooth(height: int, width: int, wavelength: float = 40.0) -> np.ndarray:
    """Band-limited RGB picture: the analytic function at the centre of each pixel."""
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.clip(np.round(analytic(x, y, wavelength)), 0, 255).astype(np.uint8)


def analytic(x: np.ndarray, y: np.ndarray, wavelength: float = 40.0) -> np.ndarray:
    k = 2 * np.pi / wavelength
    red = 128 + 100 * np.sin(k * x + 0.3) * np.cos(k * y)
    green = 128 + 90 * np.cos(k * (0.6 * x + 0.8 * y))
    blue = 128 + 90 * np.sin(k * (0.8 * x - 0.6 * y))
    return np.stack([red, green, blue], axis=-1)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def half(pixels: np.ndarray, factor: int = 2) -> np.ndarray:
    height, width = (side // factor * factor for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return blocks.mean(axis=(1, 3)).round().astype(pixels.dtype)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading without the look at whether it is H&E."""
    monkeypatch.setattr(settings, "skip_checks", {"pixel_range"})


class Recorder:
    """A lazy array that notes the windows read from it."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        cut = self.pixels[window]
        self.read.append(cut.shape)
        return cut


def channels_first(patches: np.ndarray) -> np.ndarray:
    return np.moveaxis(patches, -1, -3)


# --- geometry


@pytest.mark.parametrize("size", [7, 8])
def test_unscaled_patch_is_the_window_of_whole_pixels(size: int) -> None:
    pixels = noise(60, 70)
    xy = np.array([[20.0, 30.0], [20.5, 30.5], [20.49, 30.51], [35.9, 12.1]])
    patches = SectionImage.from_array(pixels, name="a").read_patches(xy, field=size, size=size)
    assert patches.shape == (4, 3, size, size)
    assert patches.dtype == np.uint8
    for patch, (x, y) in zip(patches, xy, strict=True):
        left, top = int(np.floor(x - size / 2 + 0.5)), int(np.floor(y - size / 2 + 0.5))
        np.testing.assert_array_equal(patch, pixels[top : top + size, left : left + size].transpose(2, 0, 1))
        # the window's middle is the spot, to half a pixel
        assert abs(left + size / 2 - x) <= 0.5


@pytest.mark.parametrize(
    ("field", "size"), [(96, 32), (50.5, 32), (41.3, 32), (10.3, 32), (40, 64), (90, 32.0), (200, 20)]
)
def test_resampled_patch_against_supersampled_integration(field: float, size: int) -> None:
    size = int(size)
    pixels = smooth(300, 320, wavelength=80)
    xy = np.array([[150.0, 140.0], [150.37, 140.81], [149.5, 141.5], [160.93, 131.06]])
    patches = SectionImage.from_array(pixels, name="a").read_patches(xy, field=field, size=size)
    # slow and independent: 8 x 8 bilinear samples in every cell; array index i is the pixel's centre
    fine = (np.arange(size * 8) + 0.5) / (size * 8) * field - field / 2
    for patch, (x, y) in zip(patches, xy, strict=True):
        grid = np.meshgrid(y + fine - 0.5, x + fine - 0.5, indexing="ij")
        for channel in range(3):
            dense = ndimage.map_coordinates(pixels[..., channel].astype(float), grid, order=1)
            slow = dense.reshape(size, 8, size, 8).mean(axis=(1, 3))
            # the triangle filter is a little wider than the cell
            tolerance = 2.5 if field / size < 5 else 8
            assert np.abs(patch[channel] - slow).max() < tolerance


@pytest.mark.parametrize(
    ("field", "size"),
    [(96, 32), (50.5, 32), (41.3, 32), (33, 32), (20.3, 32), (40, 64), (111, 112), (150.7, 11)],
)
@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, 0.77])
def test_resampled_patch_is_centred(field: float, size: int, offset: float) -> None:
    # where a wave of known length lies in the patch says where its centre is
    k = 2 * np.pi / 67.3
    wave = np.round(128 + 120 * np.sin(k * (np.arange(256) + 0.5))).astype(np.uint8)
    pixels = np.broadcast_to(wave[None, :, None], (256, 256, 3))
    x, y = 120.0 + offset, 131.0 - offset
    cells = ((np.arange(size) + 0.5) / size - 0.5) * field
    terms = np.stack([np.ones(size), np.sin(k * cells), np.cos(k * cells)], axis=1)
    for array, xy, centre in ((pixels, (x, y), x), (pixels.transpose(1, 0, 2), (x, y), y)):
        patch = SectionImage.from_array(array, name="a").read_patches([xy], field=field, size=size)[0, 0]
        profile = patch.mean(axis=0 if centre == x else 1)
        _, sine, cosine = np.linalg.lstsq(terms, profile, rcond=None)[0]
        shift = (np.arctan2(cosine, sine) - k * centre + np.pi) % (2 * np.pi) - np.pi
        # 0.06 px is what 8-bit rounding and pillow's sampled filter leave
        assert abs(shift / k) < 0.06


@pytest.mark.parametrize(("field", "size"), [(16, 16), (24, 16), (41.3, 16), (9.7, 16), (500, 16)])
def test_borders_are_padded_with_background(field: float, size: int) -> None:
    pixels = smooth(50, 64, wavelength=25)
    source = SectionImage.from_array(pixels, name="a")
    pad = 600
    padded = np.empty((50 + 2 * pad, 64 + 2 * pad, 3), dtype=np.uint8)
    padded[:] = source.background
    padded[pad:-pad, pad:-pad] = pixels
    reference = SectionImage.from_array(padded, name="padded")
    xy = np.array([[0, 0], [64, 50], [-3.3, 20.7], [30.2, 52.9], [63.4, -1.1], [32, 25], [0.5, 49.5], [-5, -5]])
    for array in (pixels, da.from_array(pixels, chunks=(20, 20, 3))):
        patches = SectionImage.from_array(array, name="a").read_patches(xy, field=field, size=size)
        np.testing.assert_array_equal(patches, reference.read_patches(xy + pad, field=field, size=size))


@pytest.mark.parametrize("lazy", [False, True])
def test_outside_and_empty_requests(lazy: bool) -> None:
    pixels = noise(40, 40)
    source = SectionImage.from_array(Recorder(pixels) if lazy else pixels, name="a")
    far = source.read_patches([[-500, 20], [20, 900], [1e7, -1e7]], field=20, size=10)
    np.testing.assert_array_equal(far, np.broadcast_to(source.background[:, None, None], (3, 3, 10, 10)))
    assert source.read_patches(np.empty((0, 2)), field=20, size=10).shape == (0, 3, 10, 10)


# --- what arrays may look like


@pytest.mark.parametrize("container", ["numpy", "dask", "zarr", "xarray"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float64", "float255"])
def test_layouts_types_and_containers_agree(container: str, layout: str, dtype: str) -> None:
    pixels = smooth(90, 80)
    xy = np.array([[40, 40], [11.3, 70.2], [2.0, 3.0]])
    expected = SectionImage.from_array(pixels, name="a")
    if dtype == "float255":
        array = pixels.astype("float32")
    elif "u2" in dtype or dtype == "uint16":
        array = (pixels.astype("uint16") * 257).astype(dtype)
    elif dtype == "uint8":
        array = pixels
    else:
        array = (pixels / 255).astype(dtype)
    if layout == "CHW":
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    if container == "dask":
        array = da.from_array(array, chunks=32)
    elif container == "zarr":
        array = zarr.array(array, chunks=(32, 32, 3) if layout == "HWC" else (3, 32, 32))
    elif container == "xarray":
        array = xr.DataArray(array, dims=tuple(layout.lower().replace("h", "y").replace("w", "x")))
    source = SectionImage.from_array(array, name="a", mpp=0.5)
    assert source.shape == (90, 80)
    assert source.mpp == 0.5
    for field in (16, 29.3):
        np.testing.assert_array_equal(
            source.read_patches(xy, field=field, size=16), expected.read_patches(xy, field=field, size=16)
        )
    np.testing.assert_array_equal(source.background, expected.background)
    np.testing.assert_array_equal(source.thumbnail(33), expected.thumbnail(33))


def test_gray_is_repeated_and_alpha_composited_on_white() -> None:
    gray = noise(32, 32)[..., 0]
    for array in (gray, gray[..., None], gray[None]):
        patch = SectionImage.from_array(array, name="a").read_patches([[16, 16]], field=32, size=32)[0]
        np.testing.assert_array_equal(patch, np.broadcast_to(gray, (3, 32, 32)))
    rgba = np.random.default_rng(1).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    rgba[:4, :, 3], rgba[4:20, :, 3] = 0, 255
    patch = SectionImage.from_array(rgba, name="a").read_patches([[16, 16]], field=32, size=32)[0]
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(patch - expected.transpose(2, 0, 1)).max() <= 0.5 + 1e-9
    assert (patch[:, :4] == 255).all()


def test_sixteen_bits_use_the_full_range() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    patch = SectionImage.from_array(values, name="a").read_patches([[128, 128]], field=256, size=256)[0, 0]
    np.testing.assert_array_equal(patch, np.round(values / 257).astype(np.uint8))


def test_xarray_names_its_axes() -> None:
    # 3 rows: by shape alone this would be taken for (C, H, W) of another image
    pixels = noise(3, 40)[:, :, :]
    array = xr.DataArray(pixels.transpose(2, 0, 1), dims=("c", "y", "x"))
    assert SectionImage.from_array(array, name="a").shape == (3, 40)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 30, 2), np.uint8), r"slot.*\(20, 30, 2\).*channels"),
        (np.zeros((5, 20, 30), np.uint8), r"slot.*\(5, 20, 30\).*channels"),
        (np.zeros((1, 1, 20, 30), np.uint8), r"slot.*\(1, 1, 20, 30\)"),
        (np.zeros((0, 30, 3), np.uint8), "no pixels"),
        (np.zeros((20, 30), bool), "data type bool.*convert"),
        (np.zeros((20, 30, 3), np.int64), "data type int64.*convert"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SectionImage.from_array(array, name="slot")


def test_lists_are_refused() -> None:
    with pytest.raises(TypeError, match=r"slot.*list"):
        SectionImage.from_array([[1, 2], [3, 4]], name="slot")


def test_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"slot: expected a NumPy.*Tensor"):
        SectionImage.from_array(torch.zeros(8, 8, 3, dtype=torch.uint8), name="slot")


@pytest.mark.parametrize("values", [np.linspace(-2, 2, 300), np.linspace(0, 90000, 300), np.full(300, np.nan)])
def test_normalised_floats_are_refused(values: np.ndarray) -> None:
    source = SectionImage.from_array(values.reshape(10, 10, 3), name="slot")
    with pytest.raises(ValueError, match=r"slot.*expected 0\.\.1 or"):
        source.read_patches([[5, 5]], field=4, size=4)


def test_nan_between_the_sampled_pixels_is_refused() -> None:
    array = np.full((3000, 3000), 0.5, dtype=np.float32)
    array[1001, 1001] = np.nan
    source = SectionImage.from_array(array, name="slot")
    source.read_patches([[500, 500]], field=8, size=8)
    with pytest.raises(ValueError, match=r"slot: NaN"):
        source.read_patches([[1001, 1001]], field=8, size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xy": [[1, 2, 3]], "field": 4, "size": 4}, r"\(1, 3\)"),
        ({"xy": [1, 2], "field": 4, "size": 4}, r"\(2,\)"),
        ({"xy": [[1, 2], [np.nan, 2]], "field": 4, "size": 4}, "NaN.*row 1"),
        ({"xy": [[1, 2]], "field": 0, "size": 4}, "field.*0"),
        ({"xy": [[1, 2]], "field": np.inf, "size": 4}, "field.*inf"),
        ({"xy": [[1, 2]], "field": 4, "size": 0}, "size.*0"),
    ],
)
def test_bad_requests_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"slot: .*{message}"):
        SectionImage.from_array(noise(9, 9), name="slot").read_patches(**arguments)


def test_bad_mpp_and_thumbnail_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slot: mpp.*-1"):
        SectionImage.from_array(noise(9, 9), name="slot", mpp=-1)
    with pytest.raises(ValueError, match=r"slot: max_size.*0"):
        SectionImage.from_array(noise(9, 9), name="slot").thumbnail(0)


# --- pyramids


@pytest.mark.parametrize(
    ("field", "size", "read"),
    [(32, 32, 0), (48, 32, 0), (64, 32, 1), (100, 32, 1), (128, 32, 2), (300, 32, 2), (16, 32, 0)],
)
@pytest.mark.usefixtures("unseen")
def test_pyramid_reads_the_coarsest_level_that_serves(field: float, size: int, read: int) -> None:
    finest = smooth(401, 503, wavelength=120)
    levels = [finest, half(finest), half(finest, 4)]
    recorders = [Recorder(level) for level in levels]
    # spots in the middle: no background is asked for
    xy = np.array([[250.0, 200.0], [253.7, 198.2]])
    patches = SectionImage.from_levels(recorders, name="a").read_patches(xy, field=field, size=size)
    assert [bool(recorder.read) for recorder in recorders] == [number == read for number in range(3)]
    alone = SectionImage.from_array(finest, name="a").read_patches(xy, field=field, size=size)
    # whole-pixel windows of a coarser level are off by half of its px at most: slope 5.2 per px
    assert np.abs(patches.astype(int) - alone).max() <= (2 if field % size else 2 + 5.3 * 2**read / 2 * (read > 0))
    assert np.abs(patches.astype(int) - alone).mean() < 5


@pytest.mark.parametrize("odd", [False, True])
def test_coarser_levels_are_registered_to_the_finest(odd: bool) -> None:
    # far from the origin, a wrong factor would show as a shift
    finest = smooth(1001, 1203, wavelength=100)
    if odd:  # a level padded up to whole blocks instead of trimmed
        grown = np.pad(finest, ((0, 3), (0, 1), (0, 0)), mode="edge")
        coarse = half(grown, 4)
        assert coarse.shape[:2] == (251, 301)
    else:
        coarse = half(finest, 4)
        assert coarse.shape[:2] == (250, 300)
    xy = np.array([[1100.3, 900.8], [1000.0, 901.5]])
    patches = SectionImage.from_levels([finest, coarse], name="a").read_patches(xy, field=150, size=32)
    alone = SectionImage.from_array(finest, name="a").read_patches(xy, field=150, size=32)
    assert np.abs(patches.astype(int) - alone).max() <= 3


def test_levels_must_belong_together() -> None:
    pixels = noise(80, 60)
    with pytest.raises(ValueError, match="at least one"):
        SectionImage.from_levels([], name="a")
    with pytest.raises(ValueError, match="finest to the coarsest"):
        SectionImage.from_levels([half(pixels), pixels], name="a")
    with pytest.raises(ValueError, match="proportions"):
        SectionImage.from_levels([pixels, pixels[:40]], name="a")
    with pytest.raises(ValueError, match="channels or data type"):
        SectionImage.from_levels([pixels, half(pixels)[..., 0]], name="a")
    with pytest.raises(ValueError, match="channels or data type"):
        SectionImage.from_levels([pixels, half(pixels) / 255], name="a")


# --- thumbnails and background


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("max_size", [37, 100, 250, 299])
def test_thumbnail_is_registered_and_bounded(max_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = smooth(203, 301, wavelength=150)
    whole = SectionImage.from_array(pixels, name="a").thumbnail(max_size)
    assert max(whole.shape[:2]) == max_size
    assert whole.shape[0] == max(1, round(203 * max_size / 301))
    height, width = whole.shape[:2]
    x = (np.arange(width) + 0.5) / width * 301
    y = (np.arange(height) + 0.5) / height * 203
    expected = analytic(*np.meshgrid(x, y), 150)
    inner = slice(2, -2)
    assert np.abs(whole - expected)[inner, inner].max() < 4
    # reading in stripes changes nothing
    monkeypatch.setattr(settings, "tile_cache", 0)
    monkeypatch.setattr(_image, "STRIPE", 64**2)
    recorder = Recorder(pixels)
    np.testing.assert_array_equal(SectionImage.from_array(recorder, name="a").thumbnail(max_size), whole)
    assert max(shape[0] * shape[1] for shape in recorder.read) <= max(64**2, 301 * (301 // (2 * max_size) or 1))


def test_thumbnail_of_a_lazy_pyramid_leaves_the_finest_level_alone() -> None:
    finest = smooth(400, 500, wavelength=200)
    recorders = [Recorder(level) for level in (finest, half(finest), half(finest, 4))]
    source = SectionImage.from_levels(recorders, name="a")
    assert source.thumbnail(100).shape == (80, 100, 3)
    assert [bool(recorder.read) for recorder in recorders] == [False, False, True]
    assert source.thumbnail(200).shape == (160, 200, 3)
    assert source.thumbnail(450).shape == (200, 250, 3)
    assert not recorders[0].read


def test_small_images_are_not_enlarged() -> None:
    pixels = noise(20, 30)
    thumbnail = SectionImage.from_array(pixels, name="a").thumbnail(100)
    np.testing.assert_array_equal(thumbnail, pixels)
    assert not np.shares_memory(thumbnail, pixels)


def tissue(glass: tuple[int, int, int], noise_level: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(4)
    pixels = np.empty((300, 400, 3))
    pixels[:] = glass
    pixels[60:240, 80:330] = (200, 120, 170)
    pixels[100:150, 100:250] = (90, 50, 130)
    pixels[:] += rng.normal(0, noise_level, pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("border", [None, 0, 255])
@pytest.mark.parametrize("glass", [(238, 236, 240), (222, 219, 215)])
def test_background_is_the_glass(glass: tuple[int, int, int], border: int | None) -> None:
    pixels = tissue(glass)
    if border is not None:
        pixels[:25], pixels[:, -40:] = border, border
    background = SectionImage.from_array(pixels, name="a").background
    assert background.shape == (3,)
    assert background.dtype == np.uint8
    assert np.abs(background.astype(int) - glass).max() <= 3


def test_background_of_a_small_scan_on_a_black_canvas() -> None:
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    pixels[100:150, 200:260] = (238, 236, 240)
    pixels[110:130, 210:240] = (200, 120, 170)
    np.testing.assert_array_equal(SectionImage.from_array(pixels, name="a").background, (238, 236, 240))


def test_background_of_overexposed_empty_and_black_images() -> None:
    overexposed = tissue((255, 255, 255), noise_level=0)
    np.testing.assert_array_equal(SectionImage.from_array(overexposed, name="a").background, [255] * 3)
    for value in (0, 255):
        flat = np.full((50, 50, 3), value, dtype=np.uint8)
        np.testing.assert_array_equal(SectionImage.from_array(flat, name="a").background, [value] * 3)


# --- fields of view beyond the image


@pytest.mark.parametrize("field", [400.0, 733.3, 9000.0])
def test_fields_far_beyond_the_image_are_the_same_without_laying_them_out(field, monkeypatch) -> None:
    pixels = noise(60, 90)
    pixels[:20] = 230
    xy = [[20.0, 30.0], [88.5, 3.0], [45.0, 30.0]]
    source = SectionImage.from_array(pixels, name="a")
    plain = source.read_patches(xy, field=field, size=24)
    assert plain.std() > 0
    monkeypatch.setattr("hggep_sc.image._image.AMPLE", 0)
    found = source.read_patches(xy, field=field, size=24)
    assert np.abs(found.astype(int) - plain).max() <= 3  # of the filter's own rounding
    assert np.abs(found.astype(int) - plain).mean() < 0.3


@pytest.mark.parametrize("field", [1e5, 4.8e8, 1e200])
def test_no_field_takes_more_memory_than_the_image(field) -> None:
    import tracemalloc

    source = SectionImage.from_array(noise(500, 700), name="a")
    background = source.background
    tracemalloc.start()
    patches = source.read_patches([[350, 250], [0, 0]], field=field, size=112)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20  # a window of 100,000 px would take 28 GiB
    share = (np.abs(patches.astype(int) - background[:, None, None]).max(axis=1) > 2).mean()
    assert (0 < share < 0.002) if field == 1e5 else share == 0  # of 112 px of 900, one or two see the image
