"""Channels by their names: of SpatialData, OME-TIFF, ImageJ's TIFF and OME-Zarr."""

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_multiscale

from hggep_sc import settings
from hggep_sc.image import SectionImage, in_colour_order

PIXELS = np.random.default_rng(0).integers(100, 250, (3, 40, 50), dtype=np.uint8)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("0", "1", "2"),
        ("Channel 0", "Channel 1", "Channel 2"),
        ("channel_0", "channel_1", "channel_2"),
        ("C:0", "C:1", "C:2"),
        ("scan1", "scan2", "scan3"),
        ("H&E", "H&E", "H&E"),
        ("", "", ""),
        ("red", "green", "blue"),
        ("TL Brightfield",),
        ("whatever",),
    ],
)
def test_names_that_tell_nothing_leave_channels_as_they_are(names) -> None:
    (same,) = in_colour_order([PIXELS[: len(names) or 3]], names, 0, "slot")
    np.testing.assert_array_equal(same, PIXELS[: len(names) or 3])


def test_colours_are_put_in_order(warned) -> None:
    (turned,) = in_colour_order([PIXELS], ("Blue", "Green", "Red"), 0, "slot")
    np.testing.assert_array_equal(turned, PIXELS[::-1])
    four = np.concatenate([PIXELS, PIXELS[:1]])
    (first,) = in_colour_order([four.transpose(1, 2, 0)], ("a", "r", "g", "b"), 2, "slot")
    np.testing.assert_array_equal(first, four[[1, 2, 3, 0]].transpose(1, 2, 0))
    assert not warned.messages
    (three,) = in_colour_order([four], ("r", "g", "b", "DAPI"), 0, "slot")
    np.testing.assert_array_equal(three, PIXELS)
    assert "of its channels 'r', 'g', 'b', 'dapi', red, green and blue are used" in warned.text


@pytest.mark.parametrize(
    "names",
    [
        ("DAPI", "CD45", "PanCK"),
        ("CD3", "CD4", "CD5"),
        ("Cy3", "Cy5", "FITC"),
        ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"),
        ("Hematoxylin", "Eosin", "Residual"),
        ("nucleus", "membrane", "marker"),
        ("DAPI",),
    ],
)
def test_other_names_are_refused(names, monkeypatch) -> None:
    array = np.zeros((len(names), 40, 50), np.uint8)
    with pytest.raises(ValueError, match=rf"slot: its channels are called '{names[0].lower()}'.*give the H&E image"):
        in_colour_order([array], names, 0, "slot")
    monkeypatch.setattr(settings, "skip_checks", {"channels"})
    assert in_colour_order([array], names, 0, "slot")[0] is array


def test_of_spatialdata() -> None:
    import spatialdata as sd
    from spatialdata.models import Image2DModel

    import hggep_sc as hggep

    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), c_coords=["DAPI", "CD45", "PanCK"])
    for call in (hggep.pp.tile, hggep.pp.tissue_mask):
        with pytest.raises(ValueError, match=r"image images\['he'\]: its channels are called 'dapi', 'cd45', 'panck'"):
            call(sd.SpatialData(images={"he": image}), mpp=1.0)


def test_of_ome_tiff(tmp_path, warned) -> None:
    path = tmp_path / "a.ome.tif"
    how = {"photometric": "minisblack", "tile": (16, 16)}
    for names in (["DAPI", "CD45", "PanCK"], ["Blue", "Green", "Red"], ["Channel 0", "Channel 1", "Channel 2"]):
        tifffile.imwrite(path, PIXELS, metadata={"axes": "CYX", "Channel": {"Name": names}}, **how)
        if names[0] == "DAPI":
            with pytest.raises(ValueError, match=r"a\.ome\.tif: its channels are called 'dapi', 'cd45', 'panck'"):
                SectionImage.from_file(path)
            continue
        with SectionImage.from_file(path) as image:
            patch = image.read_patches([[25, 20]], field=20, size=20)[0]
        expected = PIXELS[:: -1 if names[0] == "Blue" else 1, 10:30, 15:35]
        np.testing.assert_array_equal(patch, expected)
        # of the last nothing says that they are colours
        assert ("stores 3 gray channels" in warned.text) == (names[0] == "Channel 0")


def test_of_four_gray_planes(tmp_path) -> None:
    path = tmp_path / "four.tif"
    tifffile.imwrite(path, np.concatenate([PIXELS, PIXELS[:1] // 2]), imagej=True, metadata={"axes": "CYX"})
    with SectionImage.from_file(path) as image, pytest.raises(ValueError, match="its fourth channel has values"):
        image.thumbnail(10)
    labels = ["DAPI", "FITC", "Cy5", "TRITC"]
    tifffile.imwrite(path, np.repeat(PIXELS[:1], 4, 0), imagej=True, metadata={"axes": "CYX", "Labels": labels})
    with pytest.raises(ValueError, match=r"four\.tif: its channels are called 'dapi'"):
        SectionImage.from_file(path)


@pytest.mark.parametrize("version", [FormatV04, FormatV05])
def test_of_ome_zarr(tmp_path, version) -> None:
    for number, (labels, expected) in enumerate(
        {("Blue", "Green", "Red"): PIXELS[::-1], ("0", "1", "2"): PIXELS, ("DAPI", "CD3", "CD8"): None}.items()
    ):
        path = tmp_path / f"{number}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2 if version is FormatV04 else 3)
        write_multiscale([PIXELS], group, fmt=version(), axes="cyx")
        omero = {"channels": [{"label": label, "color": "FFFFFF"} for label in labels]}
        if version is FormatV04:
            group.attrs["omero"] = omero
        else:
            group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}
        if expected is None:
            with pytest.raises(ValueError, match=r"2\.zarr: its channels are called 'dapi', 'cd3', 'cd8'"):
                SectionImage.from_file(path)
            continue
        with SectionImage.from_file(path) as image:
            patch = image.read_patches([[25, 20]], field=20, size=20)[0]
        np.testing.assert_array_equal(patch, expected[:, 10:30, 15:35])


@pytest.mark.parametrize("version", ["0.1", "0.3", "0.6"])
def test_other_versions_of_ome_zarr_are_named(tmp_path, version: str) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=PIXELS)
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}]}]
    with pytest.raises(ValueError, match=rf"a\.zarr is OME-Zarr of version {version}, while 0\.4 and 0\.5 are read"):
        SectionImage.from_file(path)
