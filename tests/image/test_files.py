"""Images read from files: formats, physical scale, and what is damaged or something else."""

import shutil
import types

import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image, ImageFile

from hggep_sc.image import SectionImage, _tiff


def smooth(height: int, width: int, wavelength: float = 40.0) -> np.ndarray:
    """Picture that JPEG keeps well."""
    y, x = 2 * np.pi / wavelength * np.mgrid[:height, :width]
    waves = [np.sin(x + 0.3) * np.cos(y), np.cos(0.6 * x + 0.8 * y), np.sin(0.8 * x - 0.6 * y)]
    return np.round(128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def half(pixels: np.ndarray, factor: int = 2) -> np.ndarray:
    height, width = (side // factor * factor for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return blocks.mean(axis=(1, 3)).round().astype(pixels.dtype)


def whole(source: SectionImage) -> np.ndarray:
    size = max(source.shape)
    patch = source.read_patches([[size / 2, size / 2]], field=size, size=size)[0]
    return patch[:, : source.shape[0], : source.shape[1]].transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["png", "gray", "gray16", "rgba", "palette", "la", "jpeg", "cmyk"])
def test_pillow_files(tmp_path, kind: str) -> None:
    pixels = smooth(90, 121)
    gray = pixels[..., 0]
    alpha = noise(90, 121)[..., :1]
    path = tmp_path / f"section.{'jpg' if kind in ('jpeg', 'cmyk') else 'png'}"
    picture, expected, tolerance = {
        "png": (Image.fromarray(pixels), pixels, 0),
        "gray": (Image.fromarray(gray), gray[..., None], 0),
        "gray16": (Image.fromarray(gray.astype(np.uint16) * 257), gray[..., None], 0),
        "rgba": (
            Image.fromarray(np.concatenate([pixels, alpha], axis=2)),
            pixels * (alpha / 255) + 255 - alpha,
            0.51,
        ),
        "palette": (Image.fromarray(gray).convert("P"), gray[..., None], 0),
        "la": (
            Image.fromarray(np.concatenate([gray[..., None], alpha], axis=2), mode="LA"),
            gray[..., None] * (alpha / 255) + 255 - alpha,
            0.51,
        ),
        "jpeg": (Image.fromarray(pixels), pixels, 12),
        "cmyk": (Image.fromarray(pixels).convert("CMYK"), pixels, 25),
    }[kind]
    picture.save(path, **({"quality": 95, "subsampling": 0, "dpi": (25400, 25400)} if path.suffix == ".jpg" else {}))
    with SectionImage.from_file(path) as source:
        assert source.shape == (90, 121)
        assert source.name == path.name
        assert source.mpp is None  # a JPEG's dpi says nothing
        assert np.abs(whole(source) - np.broadcast_to(expected, pixels.shape).astype(float)).max() <= tolerance


@pytest.mark.parametrize("kind", ["tiled", "jpeg", "strips", "one strip", "planar", "gray", "uint16", "rgba"])
def test_tiff_files(tmp_path, kind: str) -> None:
    pixels = smooth(200, 333)
    path = tmp_path / "section.tif"
    options: dict = {"photometric": "rgb"}
    stored, expected, tolerance = pixels, pixels, 0
    if kind in ("tiled", "jpeg", "uint16", "rgba"):
        options["tile"] = (64, 64)
    if kind == "jpeg":
        options |= {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (1, 1)}
        tolerance = 12
    elif kind == "strips":
        options |= {"rowsperstrip": 16, "compression": "lzw"}
    elif kind == "planar":
        stored = pixels.transpose(2, 0, 1)
        options |= {"planarconfig": "separate"}
    elif kind == "gray":
        stored, options["photometric"] = pixels[..., 0], "minisblack"
        expected = np.repeat(pixels[..., :1], 3, axis=2)
    elif kind == "uint16":
        stored = pixels.astype(np.uint16) * 257
    elif kind == "rgba":
        stored = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(path, stored, **options)
    with SectionImage.from_file(path) as source:
        assert source.shape == (200, 333)
        assert np.abs(whole(source).astype(int) - expected).max() <= tolerance


def test_tiff_in_one_large_piece_is_decoded_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiff, "LARGEST_TILE", 3 * 64**2)
    pixels = smooth(200, 333)
    path = tmp_path / "section.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", rowsperstrip=200)
    decoded = []
    decode = tifffile.TiffPageSeries.asarray
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    with SectionImage.from_file(path) as source:
        assert source.shape == (200, 333)
        assert not decoded
        np.testing.assert_array_equal(whole(source), pixels)
        source.thumbnail(10)
    assert decoded == [1]


def write_pyramid(path, pixels: np.ndarray, factors: tuple[int, ...] = (2, 4), **options) -> None:
    with tifffile.TiffWriter(path, bigtiff=True, ome=options.pop("ome", False)) as writer:
        common = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        writer.write(pixels, subifds=len(factors), **common, **options)
        for factor in factors:
            writer.write(half(pixels, factor), subfiletype=1, **common)


@pytest.mark.parametrize("ome", [False, True])
def test_pyramidal_tiff(tmp_path, ome: bool) -> None:
    pixels = smooth(401, 603, wavelength=120)
    path = tmp_path / "section.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.00025, "PhysicalSizeXUnit": "mm"} if ome else None
    write_pyramid(path, pixels, ome=ome, metadata=metadata)
    xy = np.array([[300.2, 200.7], [555.0, 350.0], [1, 1]])
    with SectionImage.from_file(path) as source:
        assert source.shape == (401, 603)
        assert source.mpp == (pytest.approx(0.25) if ome else None)
        assert source.thumbnail(100).shape[1] == 100
        levels = [pixels, half(pixels), half(pixels, 4)]
        for field in (32, 40, 80, 300):
            # the levels that the test wrote itself, in memory
            memory = SectionImage.from_levels(levels, name="a")
            memory.__dict__["background"] = source.background
            expected = memory.read_patches(xy, field=field, size=32)
            np.testing.assert_array_equal(source.read_patches(xy, field=field, size=32), expected)


def test_tiles_left_out_are_not_black(tmp_path) -> None:
    path = tmp_path / "sparse.tif"
    tile = np.full((64, 64, 3), 100, dtype=np.uint8)
    tiles = (None if number % 2 else tile for number in range(4))
    tifffile.imwrite(path, tiles, shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb")
    with SectionImage.from_file(path) as source:
        pixels = whole(source)
    assert (pixels[:, 64:] == 255).all()
    assert (pixels[:, :64] == 100).all()


APERIO = "Aperio Image Library v10.0.50\r\n200x333 [0,0 200x333] (64x64) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.4990"


@pytest.mark.parametrize(
    ("compression", "photometric", "ycbcr"),
    [
        (33003, "rgb", True),  # as Aperio writes it
        (33003, "ycbcr", True),
        (33005, "rgb", False),
        (33005, "ycbcr", False),
        (34712, "rgb", False),
        (34712, "ycbcr", True),
    ],
)
def test_jpeg_2000(tmp_path, compression: int, photometric: str, ycbcr: bool) -> None:
    pixels = smooth(200, 333)
    red, green, blue = np.moveaxis(pixels.astype(float), 2, 0)
    # the full-range transformation of JFIF
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    stored = np.stack([luma, *chroma], axis=2).round().astype(np.uint8) if ycbcr else pixels
    padded = np.pad(stored, ((0, 56), (0, 51), (0, 0)))
    tiles = [padded[y : y + 64, x : x + 64] for y in range(0, 256, 64) for x in range(0, 384, 64)]
    encoded = (imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=not ycbcr, reversible=True) for tile in tiles)
    path = tmp_path / "slide.svs"
    tifffile.imwrite(
        path,
        (b"" if number == 8 else tile for number, tile in enumerate(encoded)),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(64, 64),
        compression=compression,
        photometric=photometric,
        description=APERIO,
        metadata=None,
    )
    expected = pixels.copy()
    expected[64:128, 128:192] = 255  # the tile left out
    with SectionImage.from_file(path) as source:
        assert source.mpp == pytest.approx(0.499)
        # rounding of the transformation there and back
        assert np.abs(whole(source).astype(int) - expected).max() <= (3 if ycbcr else 0)


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((45454, 45454), "CENTIMETER", 0.22),  # a Hamamatsu scanner at 40x
        ((20000, 20000), "CENTIMETER", 0.5),
        ((25400, 25400), "INCH", 1.0),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((1, 1), "NONE", None),
        ((5, 5), "CENTIMETER", None),
    ],
)
def test_mpp_from_resolution_tags(tmp_path, resolution, unit: str, mpp: float | None) -> None:
    path = tmp_path / "section.tif"
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", resolution=resolution, resolutionunit=unit)
    with SectionImage.from_file(path) as source:
        assert source.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [(0.5, "µm", 0.5), (0.5, None, 0.5), (500, "nm", 0.5), (0.5, "pixel", None), (None, None, None)],
)
def test_mpp_from_ome(tmp_path, size: float | None, unit: str | None, mpp: float | None) -> None:
    path = tmp_path / "section.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", metadata=metadata)
    with SectionImage.from_file(path) as source:
        assert source.mpp == (None if mpp is None else pytest.approx(mpp))


def test_tags_of_the_image_that_is_read_and_of_no_other(tmp_path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:  # a thumbnail, the section, a label
        tiff.write(noise(32, 32), photometric="rgb", resolution=(5000, 5000), resolutionunit="CENTIMETER")
        tiff.write(noise(80, 96), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
        tiff.write(noise(40, 16), photometric="rgb", description="Aperio MPP = 4.0", metadata=None)
    with SectionImage.from_file(path) as source:
        assert (source.shape, source.mpp) == ((80, 96), pytest.approx(0.5))
    with tifffile.TiffWriter(path) as tiff:  # which says nothing of itself
        tiff.write(noise(32, 32), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
        tiff.write(noise(80, 96), photometric="rgb")
    with SectionImage.from_file(path) as source:
        assert source.mpp is None


def test_ome_metadata_of_the_image_that_is_read(tmp_path) -> None:
    path = tmp_path / "a.ome.tif"
    options = {"photometric": "rgb"}

    def write(*images):
        with tifffile.TiffWriter(path, ome=True) as tiff:
            for (height, width), size in images:
                sizes = {} if size is None else {"PhysicalSizeX": size, "PhysicalSizeY": size}
                tiff.write(noise(height, width), metadata={"axes": "YXS", **sizes}, **options)
        with SectionImage.from_file(path) as source:
            return source.mpp

    assert write(((32, 32), 4.0), ((80, 96), 0.5), ((16, 64), 2.0)) == pytest.approx(0.5)
    assert write(((32, 32), 4.0), ((80, 96), None)) is None
    assert write(((80, 96), 0.25), ((80, 96), 0.5)) == pytest.approx(0.25)  # the first of two as large is read


@pytest.mark.parametrize("kind", ["tags", "ome"])
def test_px_that_are_higher_than_wide(tmp_path, kind: str) -> None:
    path = tmp_path / ("a.tif" if kind == "tags" else "a.ome.tif")
    options = {"resolution": (40000, 10000), "resolutionunit": "CENTIMETER"}
    if kind == "ome":
        options = {"metadata": {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 1.0}}
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", **options)
    with SectionImage.from_file(path) as source:
        assert (source.mpp, source.aspect) == (pytest.approx(0.5), pytest.approx(4))


def test_missing_folder_empty_and_foreign_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg.*correct the path"):
        SectionImage.from_file(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="is a folder"):
        SectionImage.from_file(tmp_path)
    empty = tmp_path / "empty.tif"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.tif is empty"):
        SectionImage.from_file(empty)
    foreign = tmp_path / "table.png"
    foreign.write_text("gene,count\n")
    with pytest.raises(ValueError, match=r"table\.png cannot be decoded.*again"):
        SectionImage.from_file(foreign)
    preview = tmp_path / "slide.mrxs"
    Image.fromarray(noise(20, 20)).save(preview, format="JPEG")
    with pytest.raises(ValueError, match=r"slide\.mrxs is a MIRAX slide.*vips tiffsave"):
        SectionImage.from_file(preview)
    overview = tmp_path / "slide.VSI"
    tifffile.imwrite(overview, noise(20, 20), photometric="rgb")
    with pytest.raises(ValueError, match=r"slide\.VSI is an Olympus slide.*pyramidal OME-TIFF.*QuPath"):
        SectionImage.from_file(overview)
    bilevel = tmp_path / "mask.png"
    Image.fromarray(noise(20, 20)[..., 0] > 100).save(bilevel)
    with pytest.raises(ValueError, match=r"mask\.png.*mode '1'.*convert"):
        SectionImage.from_file(bilevel)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "ome.tif"])
@pytest.mark.parametrize("kept", [0.002, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix: str, kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # even where the caller has told pillow to be lenient
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / f"cut.{suffix}"
    if "tif" in suffix:
        write_pyramid(path, noise(300, 300), ome="ome" in suffix)
    else:
        Image.fromarray(noise(300, 300)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = rf"cut\.{suffix}.*(damaged|cut short)"
    if suffix in ("jpg", "png") and kept > 0.1:  # the header is whole, the pixels are not
        with SectionImage.from_file(path) as source:
            assert source.shape == (300, 300)
            for _ in range(2):
                with pytest.raises(ValueError, match=message):
                    source.read_patches([[5, 5]], field=4, size=4)
    else:
        with (
            pytest.raises(ValueError, match=message),
            SectionImage.from_file(path) as source,
        ):
            source.thumbnail(10)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_damaged_tile_is_named_on_reading(tmp_path) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, noise(1024, 1024), photometric="rgb", tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    with SectionImage.from_file(path) as source:
        source.read_patches([[800, 800]], field=20, size=20)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"damaged\.tif.*columns 256 to 512, rows 256 to 512 cannot be read"):
                source.read_patches([[384, 384]], field=20, size=20)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.zeros((64, 64), np.uint8), {"photometric": "miniswhite"}, "MINISWHITE.*convert"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "SEPARATED.*convert"),
        (np.zeros((5, 64, 64), np.uint8), {"photometric": "minisblack"}, "axes|channels"),
        (np.zeros((64, 64), np.int32), {"photometric": "minisblack"}, "data type int32"),
    ],
)
def test_tiffs_of_other_things_are_refused(tmp_path, pixels: np.ndarray, options: dict, message: str) -> None:
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, pixels, **options)
    with pytest.raises(ValueError, match=rf"other\.tif.*({message})"):
        SectionImage.from_file(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_files_decoded_whole_must_fit_in_free_memory(tmp_path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiff, "LARGEST_TILE", 3 * 64**2)
    path = tmp_path / f"large.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, noise(200, 300), photometric="rgb", compression="zlib", rowsperstrip=200)
    else:
        Image.fromarray(noise(200, 300)).save(path)
    free = 200 * 300 * (3 if suffix == "tif" else 7)
    for missing in (0, 1):
        memory = types.SimpleNamespace(available=free - missing)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        if missing:
            with pytest.raises(ValueError, match=rf"large\.{suffix}.*decoded whole.*GiB are free.*tiled TIFF"):
                SectionImage.from_file(path)
        else:
            SectionImage.from_file(path).close()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_decoded_once_and_not_before_pixels_are_asked_for(
    tmp_path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"section.{suffix}"
    Image.fromarray(noise(90, 121)).save(path)
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image) or load(image))
    with SectionImage.from_file(path) as source:
        assert source.shape == (90, 121)
        assert not decoded
        first = source.read_patches([[50, 40]], field=8, size=8)
        images = {id(image) for image in decoded}
        assert len(images) == 1
        np.testing.assert_array_equal(source.read_patches([[50, 40]], field=8, size=8), first)
        source.thumbnail(10)
        assert {id(image) for image in decoded} == images
    with SectionImage.from_file(path) as source:
        path.unlink()
        with pytest.raises(ValueError, match=r"section\..*cannot be read.*gone"):
            source.thumbnail(10)


def test_large_images_pass_pillows_limit(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(noise(100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with SectionImage.from_file(path) as source:
        np.testing.assert_array_equal(whole(source), noise(100, 100))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_closed_images_say_so(tmp_path) -> None:
    path = tmp_path / "section.tif"
    write_pyramid(path, noise(300, 300))
    with SectionImage.from_file(path) as source:
        source.thumbnail(20)
    assert source.shape == (300, 300)
    with pytest.raises(ValueError, match=r"section\.tif has been closed"):
        source.read_patches([[5, 5]], field=4, size=4)
    with pytest.raises(ValueError, match=r"section\.tif has been closed"):
        source.thumbnail(20)


# --- real files


def test_real_slide(shared) -> None:
    path = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    pixels = tifffile.imread(path)
    rng = np.random.default_rng(5)
    xy = rng.uniform([0, 0], [2220, 2967], (40, 2))
    with SectionImage.from_file(path) as source:
        assert source.shape == (2967, 2220)
        assert source.mpp == pytest.approx(0.499)
        assert source.background.min() > 225
        memory = SectionImage.from_array(pixels, name="a")
        for field in (112, 200.5):
            np.testing.assert_array_equal(
                source.read_patches(xy, field=field, size=112), memory.read_patches(xy, field=field, size=112)
            )
        assert max(source.thumbnail(300).shape) == 300


@pytest.mark.parametrize("kept", [100, 0.01, 0.5])
def test_real_slide_cut_short(shared, tmp_path, kept: float) -> None:
    content = (shared / "data" / "wsi" / "CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(ValueError, match=r"cut\.svs.*(damaged|cut short).*again"):
        SectionImage.from_file(path)


def test_real_slide_without_its_label(shared, tmp_path) -> None:
    whole_slide = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    path = tmp_path / "cut.svs"
    path.write_bytes(whole_slide.read_bytes()[:-10_000])
    with SectionImage.from_file(path) as source, SectionImage.from_file(whole_slide) as expected:
        assert source.mpp == expected.mpp
        np.testing.assert_array_equal(source.thumbnail(2967), expected.thumbnail(2967))


def test_real_slide_with_a_damaged_tile(shared, tmp_path) -> None:
    path = tmp_path / "damaged.svs"
    shutil.copy(shared / "data" / "wsi" / "CMU-1-Small-Region.svs", path)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[11], tiff.pages[0].databytecounts[11]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    with SectionImage.from_file(path) as source:
        source.read_patches([[100, 100]], field=100, size=100)
        with pytest.raises(ValueError, match=r"damaged\.svs.*columns 240 to 480, rows 240 to 480 cannot be read"):
            source.read_patches([[360, 360]], field=100, size=100)


def test_real_section(shared) -> None:
    path = shared / "data" / "her2st" / "data" / "ST-imgs" / "C" / "C5" / "5714_HE_BT_E1.jpg"
    with SectionImage.from_file(path) as source:
        assert source.mpp is None
        assert source.background.min() > 180
        # the decoder of another library
        slow = imagecodecs.jpeg8_decode(path.read_bytes())
        assert source.shape == slow.shape[:2]
        patch = source.read_patches([[5000, 4000]], field=112, size=112)[0]
        window = slow[3944:4056, 4944:5056].transpose(2, 0, 1)
        assert np.abs(patch.astype(int) - window).mean() < 2
