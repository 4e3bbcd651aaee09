"""Files that are damaged, hostile or no files: documented errors, at once, and nothing else."""

import os
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import hggep_sc as hggep
from helpers import make_adata
from hggep_sc.encoders.weights import locate_weights
from hggep_sc.image import SectionImage
from hggep_sc.section import open_sections

PIXELS = np.broadcast_to(np.linspace(60, 250, 96)[None, :, None], (64, 96, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Small images by name."""
    folder = tmp_path_factory.mktemp("files")
    tiled = {"photometric": "rgb", "tile": (32, 32)}
    for name, options in {
        "tiled.tif": tiled,
        "strips.tif": {"photometric": "rgb", "rowsperstrip": 16, "compression": "lzw"},
        "jpeg.svs": {**tiled, "compression": "jpeg", "description": "Aperio Image|MPP = 0.5"},
        "ome.ome.tif": {**tiled, "metadata": {"axes": "YXS", "PhysicalSizeX": 0.5}},
        "big.tif": {**tiled, "bigtiff": True},
    }.items():
        tifffile.imwrite(folder / name, PIXELS, **options)
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        Image.fromarray(PIXELS).save(folder / name)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def look(path) -> None:
    with SectionImage.from_file(path) as image:
        image.thumbnail(40)
        image.read_patches([[50, 30], [3, 3]], field=20, size=10)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_what_is_documented(files, tmp_path, data) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    near = st.one_of(  # headers begin a file, and tables of TIFF may end it
        st.integers(0, min(len(content), 400) - 1), st.integers(max(0, len(content) - 400), len(content) - 1)
    )
    for place, value in data.draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = value
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        look(path)
    except ValueError as error:
        assert name in str(error)  # noqa: PT017 - of any error that comes


@pytest.mark.parametrize("value", [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    ("name", "tag"),
    [
        *(("tiled.tif", tag) for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength")),
        *(("strips.tif", tag) for tag in ("ImageWidth", "ImageLength", "RowsPerStrip")),
    ],
)
def test_absurd_sizes(files, tmp_path, name: str, tag: str, value: int) -> None:
    path = tmp_path / name
    path.write_bytes(files[name])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        place = tiff.pages[0].tags[tag].offset
    with path.open("r+b") as file:  # as LONG, one value
        file.seek(place + 2)
        file.write(struct.pack("<HII", 4, 1, value))
    if tag == "RowsPerStrip" and value > 64:
        look_or_refused(path, name)  # more rows than there are is how one strip is written
        return
    with pytest.raises(ValueError, match=name):
        look(path)


def look_or_refused(path, name: str) -> None:
    try:
        look(path)
    except ValueError as error:
        assert name in str(error)  # noqa: PT017


@pytest.mark.parametrize("resolution", [(0, 0), (0, 1), (1, 0), (2**32 - 1, 1)])
def test_absurd_resolutions_leave_the_scale_unknown(tmp_path, resolution, monkeypatch) -> None:
    path = tmp_path / "a.tif"
    tags = [(282, 5, 1, resolution, True), (283, 5, 1, resolution, True), (296, 3, 1, 3, True)]
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=tags)
    with SectionImage.from_file(path) as image:
        assert image.mpp is None
        assert image.shape == (64, 96)


# --- no files


@pytest.fixture
def others(tmp_path) -> dict[str, tuple[object, str]]:
    """Paths by what they are, and what is said of them."""
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "gone.svs")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder").mkdir()
    return {
        "pipe": (tmp_path / "pipe.svs", "is a named pipe, not a file: save"),
        "device": ("/dev/zero", "is a device, not a file"),
        "link": (tmp_path / "link.svs", "is a link to .*gone.svs, which does not exist"),
        "empty": (tmp_path / "empty.svs", "is empty: copy"),
        "folder": (tmp_path / "folder", "is a folder"),
        "address": ("https://example.org/a.svs", "is an address.*download it"),
        "bucket": ("s3://bucket/a.zarr", "is an address.*download it"),
    }


@pytest.mark.parametrize("call", [hggep.pp.tile, hggep.pp.tissue_mask])
def test_images_that_are_no_files(others, call) -> None:
    for path, message in others.values():
        with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){path} {message}"):
            call(path, mpp=1.0)


def test_source_images_that_are_no_files(others, warned) -> None:
    for kind, (path, message) in others.items():
        adata = make_adata()
        adata.uns["spatial"]["A"]["metadata"]["source_image_path"] = str(path)
        warned.clear()
        if kind in ("link", "address", "bucket"):  # nothing there: the image in memory takes its place
            open_sections(adata)
            assert f"the image file {path} {message.split('.*')[0]}" in warned.text
            del adata.uns["spatial"]["A"]["images"]
        with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
            open_sections(adata)


def test_weights_that_are_no_files(others) -> None:
    for path, message in others.values():
        if "://" in str(path):
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=f'(?s)weights file .*{message}.*"pretrained"'):
            locate_weights(path)
