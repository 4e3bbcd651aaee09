"""Images in Zarr folders: OME-Zarr as it is, and what a SpatialData reads from disk."""

import hashlib
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata
import zarr
from anndata import AnnData
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_multiscale
from spatialdata.models import Image2DModel, ShapesModel, TableModel

from hggep_sc.features.patches import read_patches
from hggep_sc.image import SectionImage
from hggep_sc.section import open_sections


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each chunk is read from disk."""
    counts: Counter = Counter()
    get = zarr.storage.LocalStore.get

    async def counting(self, key, *args, **kwargs):
        if key.rpartition("/")[2].replace(".", "").isdigit():
            counts[key] += 1
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counting)
    return counts


def pyramid(height: int, width: int) -> list[np.ndarray]:
    """(y, x, c) pictures, each half of the one before."""
    y, x = np.mgrid[:height, :width]
    finest = np.stack([x % 251, y % 241, (x * y) % 239], axis=2).astype(np.uint8)
    return [finest, finest[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, 3).max((1, 3))]


def write_ome_zarr(path: Path, levels: list[np.ndarray], *, version=FormatV05, axes="cyx", unit="micrometer", mpp=0.25):
    names = {"t": "time", "c": "channel"}
    described = [
        {"name": axis, "type": names.get(axis, "space")} | ({"unit": unit} if unit and axis in "zyx" else {})
        for axis in axes
    ]
    own = {"c": 2, "y": 0, "x": 1}
    arrays = [
        np.expand_dims(
            level.transpose([own[axis] for axis in axes if axis in own]),
            [place for place, axis in enumerate(axes) if axis not in own],
        )
        for level in levels
    ]
    scales = [
        [{"type": "scale", "scale": [mpp * 2**number if axis in "yx" else 1.0 for axis in axes]}]
        for number in range(len(levels))
    ]
    group = zarr.open_group(path, mode="w", zarr_format=2 if version is FormatV04 else 3)
    chunk = tuple({"c": 3, "y": 256, "x": 256}.get(axis, 1) for axis in axes)
    write_multiscale(
        arrays,
        group,
        fmt=version(),
        axes=described,
        coordinate_transformations=scales,
        storage_options={"chunks": chunk},
    )


@pytest.mark.parametrize("version", [FormatV04, FormatV05])
@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_ome_zarr(tmp_path, version, axes: str, chunks_read: Counter) -> None:
    levels = pyramid(700, 900)
    path = tmp_path / "slide.zarr"
    write_ome_zarr(path, levels, version=version, axes=axes)
    xy = np.random.default_rng(0).uniform([0, 0], [900, 700], (50, 2))
    memory = SectionImage.from_levels(levels, name="memory")
    with SectionImage.from_file(path) as image:
        assert image.name == "slide.zarr"
        assert image.shape == (700, 900)
        assert image.mpp == pytest.approx(0.25)
        memory.__dict__["background"] = image.background
        expected = read_patches(memory, xy, (64.0, 80.0, 200.0), 64)
        np.testing.assert_array_equal(read_patches(image, xy, (64.0, 80.0, 200.0), 64), expected)
    assert len(chunks_read) == 3 * 4 + 2 * 2
    assert max(chunks_read.values()) == 1


@pytest.mark.parametrize(
    ("unit", "mpp", "expected"),
    [("nanometer", 250, 0.25), ("millimeter", 0.0005, 0.5), (None, 1, None), ("foot", 1, None)],
)
def test_mpp_of_ome_zarr(tmp_path, unit: str | None, mpp: float, expected: float | None) -> None:
    write_ome_zarr(tmp_path / "a.zarr", pyramid(300, 300), unit=unit, mpp=mpp)
    with SectionImage.from_file(tmp_path / "a.zarr") as image:
        assert image.mpp == (None if expected is None else pytest.approx(expected))


def test_scale_of_all_levels(tmp_path) -> None:
    write_ome_zarr(tmp_path / "a.zarr", pyramid(300, 300), mpp=1)
    group = zarr.open_group(tmp_path / "a.zarr")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    group.attrs["ome"] = ome
    with SectionImage.from_file(tmp_path / "a.zarr") as image:
        assert image.mpp == pytest.approx(0.5)


def test_first_of_several_images(tmp_path) -> None:
    levels = pyramid(300, 300)
    zarr.open_group(tmp_path / "slide.zarr", mode="w").attrs["ome"] = {"bioformats2raw.layout": 3}
    write_ome_zarr(tmp_path / "slide.zarr" / "0", levels)
    write_ome_zarr(tmp_path / "slide.zarr" / "1", pyramid(50, 60))
    with SectionImage.from_file(tmp_path / "slide.zarr") as image:
        assert image.shape == (300, 300)
        patch = image.read_patches([[150, 150]], field=20, size=20)[0]
        np.testing.assert_array_equal(patch.transpose(1, 2, 0), levels[0][140:160, 140:160])


def test_other_and_damaged_folders(tmp_path) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    with pytest.raises(ValueError, match=r"a\.zarr is a folder, not an image file: give a TIFF"):
        SectionImage.from_file(path)
    zarr.open_group(path, mode="w")
    with pytest.raises(ValueError, match=r"a\.zarr is a Zarr folder without an OME-Zarr image.*spatialdata"):
        SectionImage.from_file(path)
    write_ome_zarr(path, pyramid(300, 300))
    shutil.rmtree(path / "s1")
    with pytest.raises(ValueError, match=r"a\.zarr cannot be decoded.*damaged"):
        SectionImage.from_file(path)
    write_ome_zarr(path, pyramid(300, 300))
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:50])
    with pytest.raises(ValueError, match=r"a\.zarr cannot be decoded.*damaged"):
        SectionImage.from_file(path)
    write_ome_zarr(path, pyramid(300, 300))
    chunk = next(file for file in (path / "s0").rglob("*") if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with (
        SectionImage.from_file(path) as image,
        pytest.raises(ValueError, match=r"a\.zarr.*cannot be read.*damaged"),
    ):
        image.read_patches([[150, 150]], field=299, size=299)
    stack = [np.stack([level] * 2)[..., :1] for level in pyramid(300, 300)]
    group = zarr.open_group(path, mode="w")
    write_multiscale([level[..., 0] for level in stack], group, fmt=FormatV05(), axes="zyx")
    with pytest.raises(ValueError, match=r"a\.zarr has axes \['z', 'y', 'x'\] of sizes \(2, 300, 300\)"):
        SectionImage.from_file(path)


def test_anndata_names_an_ome_zarr(tmp_path) -> None:
    path = tmp_path / "slide.zarr"
    levels = pyramid(700, 900)
    write_ome_zarr(path, levels)
    adata = AnnData(np.ones((2, 1), dtype=np.float32), var=pd.DataFrame(index=["GNAS"]))
    adata.obsm["spatial"] = np.array([[300.0, 400.0], [500.0, 410.0]])
    adata.uns["spatial"] = {"A": {"metadata": {"source_image_path": str(path)}}}
    (section,) = open_sections(adata)
    assert section.mpp == pytest.approx(0.25)
    with section.open_image() as image:
        patch = image.read_patches(section.xy, field=10, size=10)[0]
    np.testing.assert_array_equal(patch.transpose(1, 2, 0), levels[0][395:405, 295:305])


# --- SpatialData


SIDE, CHUNK = 6000, 512


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A SpatialData with an image of 6000 x 6000 px in three scales, and spots in the middle of it."""
    ramp = np.arange(SIDE) % 256
    pixels = np.broadcast_to(ramp, (3, SIDE, SIDE)).astype(np.uint8)
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2, 2], chunks=(3, CHUNK, CHUNK)
    )
    x, y = np.meshgrid(np.arange(2100, 3900, 200), np.arange(2100, 3900, 200))
    xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    table = AnnData(np.ones((len(xy), 1), dtype=np.float32), var=pd.DataFrame(index=["GNAS"]))
    table.obs["region"] = pd.Categorical(["spots"] * len(xy))
    table.obs["instance"] = np.arange(len(xy))
    sdata = spatialdata.SpatialData(
        images={"he": image},
        shapes={"spots": ShapesModel.parse(xy, geometry=0, radius=50)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )
    path = tmp_path_factory.mktemp("stored") / "section.zarr"
    sdata.write(path)
    return path


def content(path: Path) -> dict[str, tuple[int, str]]:
    """When each file was last written, and a hash of it."""
    return {
        str(file): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in path.rglob("*")
        if file.is_file()
    }


def test_spatialdata_is_read_by_chunks_and_left_as_it_is(stored, chunks_read: Counter) -> None:
    before = content(stored)
    sdata = spatialdata.read_zarr(stored)
    chunks_read.clear()
    (section,) = open_sections(sdata)
    assert {chunk[:2] for chunk in chunks_read} <= {"s2"}  # opening looks at the coarsest level alone
    chunks_read.clear()
    tracemalloc.start()
    with section.open_image() as image:
        patches = read_patches(image, section.xy, (112.0, 224.0), 56)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # windows within px 1985 to 3815 of the finest scale, which both fields of view leave alone
    second = {f"s1/c/0/{row}/{column}" for row in range(1, 4) for column in range(1, 4)}
    third = {f"s2/c/0/{row}/{column}" for row in range(3) for column in range(3)}  # all: is it H&E?
    assert chunks_read.keys() == second | third
    assert max(chunks_read.values()) == 1
    assert peak < SIDE * SIDE * 3 / 4
    ramp = np.arange(2100 - 56, 2100 + 56) % 256
    np.testing.assert_array_equal(patches[0, 0, 0, 28], ramp.reshape(-1, 2).mean(axis=1).astype(int))
    assert content(stored) == before
