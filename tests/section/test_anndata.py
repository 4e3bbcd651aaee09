"""Sections read from AnnData: spots, images, names and scale."""

import logging
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from hggep_sc.section import Section, open_sections, table_of

HEIGHT, WIDTH = 200, 240
GENES = ["GNAS", "FASN", "CD74", "ACTB", "MUC1"]


def image_of_coordinates() -> np.ndarray:
    """Full-resolution image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns, rows, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def grid() -> np.ndarray:
    """30 spots, 30 px apart."""
    x, y = np.meshgrid(30 + 30 * np.arange(6), 30 + 30 * np.arange(5))
    return np.column_stack([x.ravel(), y.ravel()]).astype(float)


def make_adata(
    xy: np.ndarray | None = None,
    *,
    library: str = "A",
    images: dict | None = None,
    seed: int = 0,
    **entry: dict,
) -> ad.AnnData:
    xy = grid() if xy is None else xy
    counts = np.random.default_rng(seed).poisson(3, size=(len(xy), len(GENES))).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    adata.obs_names = [f"{library}{i}" for i in range(len(xy))]
    adata.obsm["spatial"] = xy
    images = {"full": image_of_coordinates()} if images is None else images
    scales = {"full": 1.0, "hires": 0.5, "lowres": 0.1}
    adata.uns["spatial"] = {
        library: {
            "images": images,
            "scalefactors": {f"tissue_{key}_scalef": scales[key] for key in images} | entry.pop("scalefactors", {}),
            "metadata": entry.pop("metadata", {}),
        }
    }
    return adata


def pixels_under(section: Section) -> np.ndarray:
    with section.open_image() as image:
        return image.read_patches(section.xy, field=1, size=1)[:, :2, 0, 0].astype(float)


def two_libraries() -> ad.AnnData:
    a, b = make_adata(library="A", seed=1), make_adata(library="B", seed=2)
    both = ad.concat([a, b], uns_merge="unique")
    both.obs["slide"] = pd.Categorical(["A"] * a.n_obs + ["B"] * b.n_obs)
    return both[np.random.default_rng(0).permutation(both.n_obs)].copy()


# --- coordinates and images


def test_spots_lie_on_the_pixels_of_their_coordinates() -> None:
    adata = make_adata(scalefactors={"spot_diameter_fullres": 12.0})
    (section,) = open_sections(adata)
    assert section.name == "A"
    assert section.table is adata
    assert section.spot_shape == "circle"
    assert section.spot_diameter == 12.0
    np.testing.assert_array_equal(section.obs_rows, np.arange(30))
    np.testing.assert_array_equal(pixels_under(section), adata.obsm["spatial"])


def test_coordinates_are_scaled_to_the_image_that_is_read() -> None:
    hires = image_of_coordinates()[::2, ::2]
    adata = make_adata(images={"hires": hires}, scalefactors={"spot_diameter_fullres": 12.0, "microns_per_pixel": 2.0})
    (section,) = open_sections(adata)
    np.testing.assert_array_equal(section.xy, adata.obsm["spatial"] / 2)
    np.testing.assert_array_equal(pixels_under(section), adata.obsm["spatial"])
    assert section.spot_diameter == 6.0
    assert section.mpp == 4.0


def test_source_image_is_preferred_and_said(tmp_path, caplog) -> None:
    path = tmp_path / "full.png"
    Image.fromarray(image_of_coordinates()).save(path)
    images = {"lowres": np.zeros((20, 24, 3), np.uint8), "hires": np.zeros((100, 120, 3), np.uint8)}
    for stored in (
        str(path),
        str(path).encode(),
        np.array([str(path)], dtype=object),
        np.array(str(path).encode()),
    ):
        adata = make_adata(images=images, metadata={"source_image_path": stored})
        with caplog.at_level(logging.INFO, "hggep_sc"):
            (section,) = open_sections(adata)
        assert section.image_name == str(path)
        np.testing.assert_array_equal(pixels_under(section), adata.obsm["spatial"])
    assert "'source' is used" in caplog.text
    (section,) = open_sections(adata, image_key="lowres")
    np.testing.assert_allclose(section.xy, adata.obsm["spatial"] / 10)
    (section,) = open_sections(adata, image_key={"A": "hires"})
    np.testing.assert_allclose(section.xy, adata.obsm["spatial"] / 2)


def test_lost_source_image_falls_back_to_the_finest_copy(tmp_path, warned) -> None:
    images = {"lowres": np.zeros((20, 24, 3), np.uint8), "hires": np.zeros((100, 120, 3), np.uint8)}
    adata = make_adata(images=images, metadata={"source_image_path": str(tmp_path / "gone.tif")})
    (section,) = open_sections(adata)
    assert "hires" in section.image_name
    assert "gone.tif does not exist" in warned.text
    with pytest.raises(FileNotFoundError, match=r"gone.tif"):
        open_sections(adata, image_key="source")


def test_no_image() -> None:
    adata = make_adata()
    del adata.uns["spatial"]
    with pytest.raises(ValueError, match="no image: uns"):
        open_sections(adata)
    with pytest.raises(ValueError, match=r"no image for section 'A'.*metadata name no file"):
        open_sections(make_adata(images={}))
    with pytest.raises(ValueError, match=r"gone\.png of its metadata does not exist"):
        open_sections(make_adata(images={}, metadata={"source_image_path": "gone.png"}))
    adata = make_adata()
    del adata.uns["spatial"]["A"]["scalefactors"]["tissue_full_scalef"]
    with pytest.raises(ValueError, match="without a scale factor 'tissue_<key>_scalef': 'full'"):
        open_sections(adata)
    with pytest.raises(ValueError, match="lacks 'tissue_full_scalef'"):
        open_sections(adata, image_key="full")
    with pytest.raises(KeyError, match="no image 'hires'; images: 'full'"):
        open_sections(make_adata(), image_key="hires")


def test_corrupt_image_file(tmp_path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"not an image at all")
    with pytest.raises(ValueError, match=r"broken\.png"):
        open_sections(make_adata(images={}, metadata={"source_image_path": str(path)}))


def test_bad_coordinates() -> None:
    adata = make_adata()
    del adata.obsm["spatial"]
    with pytest.raises(ValueError, match=r"no coordinates.*`spatial_key=`"):
        open_sections(adata)
    xy = grid()
    xy[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 30 spots have NaN"):
        open_sections(make_adata(xy))
    xy = grid()
    xy[3] = xy[4]
    with pytest.raises(ValueError, match="1 of 30 spots have the coordinates of another"):
        open_sections(make_adata(xy))
    with pytest.raises(ValueError, match=r"shape \(30, 3\)"):
        open_sections(make_adata(np.column_stack([grid(), grid()[:, 0]])))
    adata = make_adata()
    adata.obsm["spatial"] = pd.DataFrame({"x": ["a"] * 30, "y": ["b"] * 30}, index=adata.obs_names)
    with pytest.raises(ValueError, match="must hold numbers"):
        open_sections(adata)
    for far in (-(2**31), 1e20, 1e300):
        xy = grid()
        xy[3, 1] = far
        with pytest.raises(ValueError, match=r"1 of 30 spots have coordinates beyond any image.*spot 3"):
            open_sections(make_adata(xy))
    xy = pd.DataFrame(np.hstack([grid(), grid()]), columns=["x", "y", "x", "y"], index=adata.obs_names)
    adata.obsm["spatial"] = xy
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] is a table with .* some of one name"):
        open_sections(adata)


def test_another_spatial_key_and_numbers_as_text() -> None:
    adata = make_adata()
    adata.obsm["other"] = adata.obsm.pop("spatial").astype(int).astype(str).astype(object)
    (section,) = open_sections(adata, spatial_key="other")
    np.testing.assert_array_equal(section.xy, grid())


def test_few_spots_outside_are_said_and_kept_most_are_refused(warned) -> None:
    xy = grid()
    xy[:3, 0] += WIDTH
    (section,) = open_sections(make_adata(xy))
    assert "3 of 30 spots lie outside the image" in warned.text
    with section.open_image() as image:
        patches = image.read_patches(section.xy, field=8, size=8)
    assert patches.shape == (30, 3, 8, 8)
    xy = grid()
    xy[:4, 0] += WIDTH
    with pytest.raises(ValueError, match=r"4 of 30 spots lie outside.*scale factors.*`image_key=`"):
        open_sections(make_adata(xy))
    xy = grid() + np.array([60, 0])  # up to x = 240, beyond the height
    warned.clear()
    open_sections(make_adata(xy))
    assert "lie outside" not in warned.text
    with pytest.raises(ValueError, match="lie outside"):
        open_sections(make_adata(xy[:, ::-1].copy()))  # row and column swapped
    hires = image_of_coordinates()[::2, ::2]
    with pytest.raises(ValueError, match="lie outside"):  # hires stored with the scale of the full image
        open_sections(make_adata(images={"full": hires}))


def test_in_tissue_is_honoured_and_spares_the_rest_from_checks() -> None:
    xy = grid()
    xy[:5] = np.nan
    adata = make_adata(xy)
    inside = np.arange(30) >= 5
    for column in (
        inside,
        inside.astype(int),
        inside.astype(int).astype(str),
        pd.Categorical(inside.astype(int)),
        np.where(inside, 1.0, np.nan),
    ):
        adata.obs["in_tissue"] = column
        (section,) = open_sections(adata)
        np.testing.assert_array_equal(section.obs_rows, np.flatnonzero(inside))
        np.testing.assert_array_equal(section.xy, xy[5:])
        assert section.counts(GENES).shape == (25, 5)
    adata.obs["in_tissue"] = 0
    with pytest.raises(ValueError, match="empty: none of its spots"):
        open_sections(adata)
    adata.obs["in_tissue"] = "yes"
    with pytest.raises(ValueError, match="must hold 1"):
        open_sections(adata)


def test_empty_and_single() -> None:
    with pytest.raises(ValueError, match="empty: it has no spots"):
        open_sections(make_adata()[:0].copy())
    (section,) = open_sections(make_adata(metadata={"technology": "Visium"})[3:4].copy())
    assert section.mpp is None  # one spot has no spacing
    assert section.counts(["ACTB"]).shape == (1, 1)


def test_wrong_types_and_keywords() -> None:
    with pytest.raises(TypeError, match="found DataFrame"):
        open_sections(pd.DataFrame())
    with pytest.raises(TypeError, match="found the path"):
        open_sections({"A": "file.h5ad"})
    with pytest.raises(ValueError, match="the list is empty"):
        open_sections([])
    with pytest.raises(ValueError, match="`shapes_key` is for SpatialData"):
        open_sections(make_adata(), shapes_key="spots")
    with pytest.raises(TypeError, match="found list"):
        table_of([make_adata()])


# --- several sections


def test_several_libraries_in_one_object() -> None:
    adata = two_libraries()
    with pytest.raises(ValueError, match=r"several libraries: 'A', 'B'.*`library_key=`.*`library_id=`"):
        open_sections(adata)
    first, second = open_sections(adata, library_key="slide")
    assert [first.name, second.name] == ["A", "B"]
    for section in (first, second):
        assert (adata.obs["slide"].iloc[section.obs_rows] == section.name).all()
        np.testing.assert_array_equal(section.xy, adata.obsm["spatial"][section.obs_rows])
        np.testing.assert_array_equal(section.counts(GENES).toarray(), adata.X[section.obs_rows].toarray())
    (only,) = open_sections(adata, library_key="slide", library_id="B")
    np.testing.assert_array_equal(only.obs_rows, second.obs_rows)
    # a subset keeps both libraries in uns
    (left,) = open_sections(adata[adata.obs["slide"] == "A"], library_key="slide")
    assert left.name == "A"
    (left,) = open_sections(adata[adata.obs["slide"] == "A"], library_id="A")
    assert len(left.obs_rows) == 30


def test_library_errors() -> None:
    adata = two_libraries()
    with pytest.raises(KeyError, match="no library 'C'; libraries: 'A', 'B'"):
        open_sections(adata, library_id="C")
    with pytest.raises(KeyError, match="no column 'batch'; columns: 'slide'"):
        open_sections(adata, library_key="batch")
    adata.obs["slide"] = adata.obs["slide"].cat.rename_categories({"B": "C"})
    with pytest.raises(ValueError, match="holds 'C', but the libraries"):
        open_sections(adata, library_key="slide")


def test_names_of_lists_and_dicts() -> None:
    one, other = make_adata(library="A"), make_adata(library="B")
    assert [section.name for section in open_sections([one, other])] == ["A", "B"]
    assert [section.name for section in open_sections({"x": one, "y": one})] == ["x", "y"]
    with pytest.raises(ValueError, match="several sections are called 'A'; pass a dict"):
        open_sections([one, one])
    both = two_libraries()
    names = [section.name for section in open_sections({"x": both}, library_key="slide")]
    assert names == ["x/A", "x/B"]


# --- scale


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"metadata": {"technology": "Visium"}}, 100 / 30),
        ({"metadata": {"technology": b"ST"}}, 200 / 30),
        ({"metadata": {"chemistry_description": "Spatial 3' v1"}}, 100 / 30),
        ({"metadata": {"chemistry_description": "Visium V4 Slide - FFPE v2"}}, 100 / 30),
        ({"metadata": {"technology": "Visium HD"}, "scalefactors": {"bin_size_um": 8}}, 8 / 30),
        ({"metadata": {"chemistry_description": "Visium HD v1"}}, None),
        ({"metadata": {"technology": "Stereo-seq"}}, None),
        ({"metadata": {"technology": "ST"}, "scalefactors": {"microns_per_pixel": np.array([6.5])}}, 6.5),
        ({"scalefactors": {"spot_diameter_fullres": 12.0}}, None),
    ],
)
def test_physical_scale(entry, expected, warned) -> None:
    (section,) = open_sections(make_adata(**entry))
    if expected is None:
        assert section.mpp is None
        assert "taken as equal" in warned.text
        assert "`mpp=`" in warned.text
    else:
        assert section.mpp == pytest.approx(expected, rel=1e-12)
        assert "taken as equal" not in warned.text


def test_given_mpp_comes_first_and_is_of_the_full_resolution() -> None:
    hires = {"hires": image_of_coordinates()[::2, ::2]}
    one = make_adata(images=hires, scalefactors={"microns_per_pixel": 9.0})
    assert open_sections(one, mpp=0.5)[0].mpp == 1.0
    sections = open_sections({"x": one, "y": one}, mpp={"y": 0.25})
    assert [section.mpp for section in sections] == [18.0, 0.5]
    with pytest.raises(KeyError, match="`mpp` names 'z', but the sections are 'x', 'y'"):
        open_sections({"x": one, "y": one}, mpp={"z": 0.25})
    for wrong in (0, -1.0, np.nan, "0.5", True):
        with pytest.raises(ValueError, match="um per px"):
            open_sections(one, mpp=wrong)


def test_the_image_file_knows_its_scale(tmp_path) -> None:
    import tifffile

    path = tmp_path / "full.ome.tif"
    sizes = {
        "PhysicalSizeX": 0.25,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.25,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, image_of_coordinates(), photometric="rgb", metadata={"axes": "YXS", **sizes})
    metadata = {"source_image_path": str(path), "technology": "unheard of"}
    (section,) = open_sections(make_adata(metadata=metadata))
    assert section.mpp == pytest.approx(0.25)
    assert section.mpp_source == "file"
    (section,) = open_sections(make_adata(metadata=metadata, scalefactors={"microns_per_pixel": 0.3}))
    assert section.mpp == 0.3
    assert section.mpp_source == "scalefactors"


def test_bins_of_visium_hd_are_squares() -> None:
    adata = make_adata(scalefactors={"bin_size_um": 8.0, "spot_diameter_fullres": 30.0, "microns_per_pixel": 8 / 30})
    (section,) = open_sections(adata)
    assert section.spot_shape == "square"
    assert section.spot_diameter == 30.0


def test_array_coordinates() -> None:
    adata = make_adata()
    (section,) = open_sections(adata)
    with pytest.raises(KeyError, match="no column 'array_col', 'array_row'"):
        section.array_xy()
    adata.obs["array_col"] = adata.obsm["spatial"][:, 0] / 30
    adata.obs["array_row"] = (adata.obsm["spatial"][:, 1] / 30).astype(int).astype(str)
    adata.obs["in_tissue"] = np.arange(30) > 9
    (section,) = open_sections(adata)
    assert section.array_xy().dtype == np.int64
    np.testing.assert_array_equal(section.array_xy() * 30, section.xy)
    adata.obs["array_row"] = 0.5
    with pytest.raises(ValueError, match="whole numbers"):
        section.array_xy()


def test_the_opener_can_be_sent_to_a_worker() -> None:
    (section,) = open_sections(make_adata())
    with pickle.loads(pickle.dumps(section.opener))() as image:
        assert image.shape == (HEIGHT, WIDTH)


# --- real


def test_real_section(shared, warned) -> None:
    folder = shared / "data" / "her2st" / "data"
    spots = pd.read_csv(folder / "ST-spotfiles" / "C5_selection.tsv", sep="\t")
    spots.index = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    counts = pd.read_csv(folder / "ST-cnts" / "C5.tsv.gz", sep="\t", index_col=0)
    adata = ad.AnnData(sparse.csr_matrix(counts.to_numpy()), counts[[]], pd.DataFrame(index=counts.columns))
    adata.obsm["spatial"] = spots.loc[counts.index, ["pixel_x", "pixel_y"]].to_numpy()
    adata.obs["array_col"], adata.obs["array_row"] = spots["x"], spots["y"]
    (path,) = (folder / "ST-imgs" / "C" / "C5").glob("*.jpg")
    adata.uns["spatial"] = {"C5": {"metadata": {"source_image_path": str(path), "technology": "ST"}}}
    (section,) = open_sections(adata)
    design = np.column_stack([section.array_xy(), np.ones(len(counts))])
    step = np.sqrt(abs(np.linalg.det(np.linalg.lstsq(design, section.xy, rcond=None)[0][:2])))
    assert section.mpp == pytest.approx(200 / step, rel=2e-3)
    assert section.mpp_source == "spots"
    assert section.library().sum() == counts.to_numpy().sum()
    np.testing.assert_array_equal(section.array_xy(), spots.loc[counts.index, ["x", "y"]])
    assert not warned.messages
