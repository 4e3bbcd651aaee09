"""What stored values stand for: white points, fourth channels, and pictures that are no H&E."""

import dask.array as da
import numpy as np
import pytest
import tifffile
from PIL import Image

from hggep_sc import settings
from hggep_sc.image import SectionImage

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stained() -> np.ndarray:
    """Pink and purple on bright glass."""
    pixels = np.full((120, 160, 3), 240.0)
    pixels[30:90, 40:120] = (215, 140, 190)
    pixels[40:60, 50:80] = (110, 70, 150)
    return np.clip(pixels + RNG.normal(0, 3, pixels.shape), 0, 255).round().astype(np.uint8)


def read(image: SectionImage) -> np.ndarray:
    """All pixels."""
    height, width = image.shape
    side = max(height, width)
    patch = image.read_patches([[side / 2, side / 2]], field=side, size=side)[0]
    return patch[:, :height, :width].transpose(1, 2, 0)


# --- white


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("dtype", "factor", "bits"),
    [
        ("uint16", 1, 8),
        ("uint16", 4, 10),
        ("uint16", 16, 12),
        (">u2", 16, 12),
        ("uint16", 64, 14),
        ("uint16", 257, None),
        ("float32", 1 / 255, None),
        ("float64", 1, None),
        ("float32", 16, 12),
        ("float32", 257, 16),
    ],
)
def test_the_range_tells_what_is_white(stained, dtype: str, factor: float, bits: int | None, lazy, warned) -> None:
    stored = (stained * float(factor)).astype(dtype)
    image = SectionImage.from_array(da.from_array(stored, chunks=(50, 50, 3)) if lazy else stored, name="slot")
    assert np.abs(read(image).astype(int) - stained).max() <= 1
    messages = warned.messages
    assert len(messages) == (bits is not None)
    if bits is not None:
        assert f"image slot: its {np.dtype(dtype).name} values range up to" in messages[0]
        assert f"as those of {bits} bits do: {2**bits - 1} is taken for white" in messages[0]
        assert "skip_checks = {'pixel_range'}" in messages[0]


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint16", 400), ("uint16", 2000), ("uint16", 25000), ("float32", 100), ("float32", 0.2)]
)
def test_a_range_that_tells_nothing_is_refused(stained, dtype: str, white: float, monkeypatch) -> None:
    stored = (stained / 255 * white).astype(dtype)
    with pytest.raises(ValueError, match=rf"the range of its {dtype} values.*dark.*astype\('uint8'\).*skip_"):
        read(SectionImage.from_array(stored, name="slot"))
    monkeypatch.setattr(settings, "skip_checks", {"pixel_range"})
    full = 65535 if dtype == "uint16" else 1 if white < 1 else 255
    expected = (stored * (255 / full)).round()
    assert np.abs(read(SectionImage.from_array(stored, name="slot")) - expected).max() <= 1


def test_a_hot_pixel_and_tiles_left_out_do_not_count(stained, warned) -> None:
    stored = stained.astype(np.uint16) * 16
    stored[0, 0], stored[:20, :20] = 60000, 65535
    found = read(SectionImage.from_array(stored, name="slot"))
    assert np.abs(found[20:].astype(int) - stained[20:]).max() <= 1
    assert (found[:20, :20] == 255).all()
    assert "12 bits" in warned.messages[0]


@pytest.mark.parametrize("how", ["OME", "MaxSampleValue"])
def test_the_file_says_how_many_bits_are_used(stained, tmp_path, how: str, warned) -> None:
    path = tmp_path / "twelve.ome.tif"
    options: dict = {"photometric": "rgb", "tile": (64, 64)}
    if how == "OME":
        options["metadata"] = {"axes": "YXS", "SignificantBits": 12}
    else:
        options |= {"extratags": [(281, 3, 3, (4080, 4080, 4080), True)], "ome": False}
    tifffile.imwrite(path, stained.astype(np.uint16) * 16, **options)
    with SectionImage.from_file(path) as image:
        assert np.abs(read(image).astype(int) - stained).max() <= 1
    assert not warned.messages
    tifffile.imwrite(path, stained.astype(np.uint16), **options)
    with SectionImage.from_file(path) as image, pytest.raises(ValueError, match="the file says that 4095 is white"):
        read(image)


def test_a_png_of_sixteen_bits_keeps_them(stained, tmp_path, warned) -> None:
    import imagecodecs

    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(stained.astype(np.uint16) * 16))
    with SectionImage.from_file(path) as image:
        assert image.shape == (120, 160)
        assert np.abs(read(image).astype(int) - stained).max() <= 1
    assert "12 bits" in warned.messages[0]


def test_a_warning_is_said_once_however_often_an_image_is_opened(stained, warned) -> None:
    already: set[str] = set()
    for _ in range(3):
        read(SectionImage.from_array(stained.astype(np.uint16), name="slot", warned=already))
    assert len(warned.messages) == 1


# --- is it H&E?


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("black", "nearly black throughout"),
        ("white", "nearly white throughout"),
        ("constant", "nearly gray or one colour throughout"),
        ("inverted", "it is dark .*fluorescence, dark-field or inverted"),
        ("fluorescent", "it is dark .*fluorescence"),
        ("percent", "it is dark"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_pictures_unlike_a_stained_section_are_warned_of(stained, what: str, pattern: str, lazy, warned) -> None:
    cells = np.zeros(stained.shape)
    cells[::8, ::8, 2] = cells[1::8, ::8, 2] = 200
    pixels = {
        "black": np.zeros_like(stained),
        "white": np.clip(stained.astype(int) + 245, 245, 255),
        "constant": np.full_like(stained, 130),
        "inverted": 255 - stained,
        "fluorescent": cells + RNG.integers(0, 12, stained.shape),
        "percent": stained * (100 / 255),
    }[what].astype(np.uint8)
    read(SectionImage.from_array(da.from_array(pixels, chunks=(50, 50, 3)) if lazy else pixels, name="slot"))
    (message,) = warned.messages
    assert message.startswith("image slot: it is")
    import re

    assert re.search(pattern, message)


def test_a_mask_is_no_image(stained) -> None:
    with pytest.raises(ValueError, match=r"image slot: its pixels are all but black, in a range of 0 to 1 of 255"):
        read(SectionImage.from_array((stained > 200).astype(np.uint8), name="slot"))


@pytest.mark.parametrize("border", [0, 255])
def test_stained_sections_pass_in_silence(stained, border: int, warned) -> None:
    wide = np.full((400, 500, 3), border, dtype=np.uint8)  # a scanner's border, most of the image
    wide[100:220, 100:260] = stained
    gray = stained.mean(axis=2).astype(np.uint8)
    for pixels in (stained, wide, stained[30:90, 40:120], gray, np.repeat(gray[..., None], 3, axis=2)):
        read(SectionImage.from_array(pixels, name="slot"))
    assert not warned.messages


def test_a_large_lazy_level_is_looked_at_here_and_there() -> None:
    class Counted:
        shape, dtype, chunks = (40_000, 30_000, 3), np.dtype(np.uint8), (256, 256, 3)
        n_read = 0

        def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
            sides = [s.stop - s.start for s in window[:2]]
            self.n_read += sides[0] * sides[1]
            return RNG.integers(100, 250, (*sides, 3), dtype=np.uint8)

    array = Counted()
    SectionImage.from_array(array, name="slot").read_patches([[500, 500]], field=50, size=50)
    assert array.n_read <= 2048**2 + 4 * 256**2


# --- the fourth channel


def rgba(stained: np.ndarray, fourth: np.ndarray | int) -> np.ndarray:
    return np.concatenate([stained, np.broadcast_to(fourth, (*stained.shape[:2], 1)).astype(np.uint8)], axis=2)


@pytest.fixture(scope="module")
def infrared() -> np.ndarray:
    return RNG.integers(5, 120, (120, 160, 1))


@pytest.mark.parametrize("opaque", [1, 255])
def test_transparency_is_laid_on_white(stained, opaque: int, warned) -> None:
    fourth = np.full((120, 160, 1), opaque)
    fourth[:, 100:] = 0
    found = read(SectionImage.from_array(rgba(stained, fourth), name="slot"))
    np.testing.assert_array_equal(found[:, :100], stained[:, :100])
    assert (found[:, 100:] == 255).all()
    assert not warned.messages


def test_transparency_that_hides_everything_is_left_out(stained, warned) -> None:
    np.testing.assert_array_equal(read(SectionImage.from_array(rgba(stained, 0), name="slot")), stained)
    assert "its fourth channel is 0 throughout, not transparency, and is left out" in warned.messages[0]


def test_another_stain_is_not_transparency(stained, infrared, monkeypatch) -> None:
    pixels = rgba(stained, infrared)
    with pytest.raises(ValueError, match=r"fourth channel has values between 0 and 119.*image\[\.\.\., :3\].*channels"):
        read(SectionImage.from_array(pixels, name="slot"))
    monkeypatch.setattr(settings, "skip_checks", {"channels", "pixel_range"})
    assert read(SectionImage.from_array(pixels, name="slot")).shape == stained.shape


@pytest.mark.parametrize("kind", ["unspecified", "assocalpha", "unassalpha"])
def test_the_file_says_what_the_fourth_channel_is(stained, infrared, tmp_path, kind: str, warned) -> None:
    path = tmp_path / "four.tif"
    pixels = rgba(stained, infrared)
    alpha = pixels[..., 3:] / 255
    if kind == "assocalpha":
        pixels[..., :3] = np.round(stained * alpha)
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[kind], tile=(64, 64))
    with SectionImage.from_file(path) as image:
        found = read(image)
    expected = stained if kind == "unspecified" else stained * alpha + 255 * (1 - alpha)
    assert np.abs(found - expected).max() <= 1
    assert [("fourth channel is not transparency by the file" in message) for message in warned.messages] == [True] * (
        kind == "unspecified"
    )


def test_alpha_of_a_png_is_believed(stained, infrared, tmp_path, warned) -> None:
    Image.fromarray(rgba(stained, infrared)).save(tmp_path / "a.png")
    with SectionImage.from_file(tmp_path / "a.png") as image:
        alpha = infrared / 255
        assert np.abs(read(image) - (stained * alpha + 255 * (1 - alpha))).max() <= 1
    assert not warned.messages


# --- orientation and modes


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_tag_of_orientation_is_named_and_not_applied(stained, tmp_path, suffix: str, warned) -> None:
    path = tmp_path / f"turned.{suffix}"
    for orientation in (1, 6):
        if suffix == "tif":
            tifffile.imwrite(path, stained, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        else:
            exif = Image.Exif()
            exif[274] = orientation
            Image.fromarray(stained).save(path, exif=exif)
        with SectionImage.from_file(path) as image:
            assert image.shape == (120, 160)
    (message,) = warned.messages
    assert f"turned.{suffix} asks viewers to turn or mirror it (orientation tag 6), and is read as stored" in message
    assert "skip_checks = {'orientation'}" in message


@pytest.mark.parametrize(("mode", "words"), [("CMYK", "colours of print"), ("P", "palette of at most 256 colours")])
def test_colours_that_are_converted_are_told_of(stained, tmp_path, mode: str, words: str, warned) -> None:
    path = tmp_path / f"a.{'tiff' if mode == 'LAB' else 'jpg' if mode == 'CMYK' else 'png'}"
    Image.fromarray(stained).convert(mode).save(path)
    with SectionImage.from_file(path) as image:
        assert np.abs(read(image).astype(int) - stained).mean() < 30
    assert words in warned.messages[0]


def test_real_images_pass_in_silence(shared, warned) -> None:
    images = [
        path
        for path in sorted((shared / "data").rglob("*"))
        if path.suffix.lower() in (".jpg", ".png", ".tif", ".tiff", ".svs")
    ]
    assert len(images) >= 9
    for path in images:
        with SectionImage.from_file(path) as image:
            image.thumbnail(256)
    assert not warned.messages
