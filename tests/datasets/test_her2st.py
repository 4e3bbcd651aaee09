"""The study's own files, read independently with the csv module and compared."""

import csv
import gzip
import socket

import numpy as np
import pytest

from hggep_sc import datasets, settings
from hggep_sc.datasets._legacy import choose, hires_copy, pitch


@pytest.fixture(scope="module")
def sections(shared):
    patch = pytest.MonkeyPatch()
    patch.setattr(settings, "dataset_dir", shared / "data")

    def refuse(*_, **__):
        raise AssertionError("the network was asked for files that are there")

    patch.setattr(socket, "getaddrinfo", refuse)
    before = {path: path.stat().st_mtime_ns for path in (shared / "data").rglob("*")}
    yield datasets.her2st(["C5", "B4"])
    assert {path: path.stat().st_mtime_ns for path in (shared / "data").rglob("*")} == before
    patch.undo()


def _table(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        return list(csv.reader(stream, delimiter="\t"))


def test_sections_come_in_the_order_asked(sections):
    assert list(sections) == ["C5", "B4"]


@pytest.mark.parametrize("name", ["B4", "C5"])
def test_counts_and_positions_are_those_of_the_files(sections, shared, name):
    section, root = sections[name], shared / "data" / "her2st"
    header, *rows = _table(root / f"data/ST-cnts/{name}.tsv.gz")
    assert section.var_names.tolist() == header[1:]
    assert section.obs_names.tolist() == [row[0] for row in rows]
    assert section.X.dtype == np.float32
    assert section.X.format == "csr"
    np.testing.assert_array_equal(section.X[[0, -1]].toarray(), np.array([rows[0][1:], rows[-1][1:]], float))
    assert section.X.sum() == sum(int(value) for row in rows for value in row[1:])

    columns, *spots = _table(root / f"data/ST-spotfiles/{name}_selection.tsv")
    at = {f"{row[0]}x{row[1]}": row for row in spots}
    where = [columns.index("pixel_x"), columns.index("pixel_y")]
    expected = [[float(at[spot][i]) for i in where] for spot in section.obs_names]
    np.testing.assert_array_equal(section.obsm["spatial"], expected)
    assert section.obs["array_col"].astype(str).tolist() == [at[spot][0] for spot in section.obs_names]
    assert section.obs["array_row"].astype(str).tolist() == [at[spot][1] for spot in section.obs_names]
    assert (section.obs["in_tissue"] == 1).all()


@pytest.mark.parametrize(("name", "without"), [("B4", 61), ("C5", 2)])
def test_clusters(sections, shared, name, without):
    section = sections[name]
    columns, *rows = _table(shared / f"data/her2st/res/ST-cluster/lbl/{name}-cluster-annotation.tsv.gz")
    x, y, label = (columns.index(column) for column in ("x", "y", "label"))
    expected = {f"{round(float(row[x]))}x{round(float(row[y]))}": row[label] for row in rows}
    cluster = section.obs["cluster"]
    assert cluster.dtype == "category"
    assert cluster.isna().sum() == without
    assert cluster.dropna().to_dict() == {spot: expected[spot] for spot in section.obs_names if spot in expected}
    assert "region" not in section.obs


@pytest.mark.parametrize("name", ["B4", "C5"])
def test_image_and_scale(sections, name):
    from PIL import Image

    library = sections[name].uns["spatial"][name]
    hires, scale = library["images"]["hires"], library["scalefactors"]
    assert hires.dtype == np.uint8
    assert max(hires.shape[:2]) == 2000
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    with Image.open(library["metadata"]["source_image_path"]) as image:
        width, height = image.size
        x, y = sections[name].obsm["spatial"][0]
        crop = np.asarray(image.crop((int(x) - 250, int(y) - 250, int(x) + 250, int(y) + 250)))
    Image.MAX_IMAGE_PIXELS = limit
    assert limit is not None  # loading lifted pillow's limit for itself alone
    assert scale["tissue_hires_scalef"] == pytest.approx(2000 / max(width, height))
    # the copy shows at scaled coordinates what the full image shows there
    column, row = (np.array([x, y]) * scale["tissue_hires_scalef"]).astype(int)
    around = hires[row - 50 : row + 50, column - 50 : column + 50]
    np.testing.assert_allclose(around.mean((0, 1)), crop.mean((0, 1)), atol=2.5)
    # neighbours along the array are 200 um apart
    spots = dict(zip(sections[name].obs_names, sections[name].obsm["spatial"], strict=True))
    steps = [
        np.linalg.norm(xy - spots[f"{int(a) + 1}x{b}"])
        for spot, xy in spots.items()
        for a, b in [spot.split("x")]
        if f"{int(a) + 1}x{b}" in spots
    ]
    assert scale["microns_per_pixel"] == pytest.approx(200 / np.median(steps), rel=0.03)
    assert scale["spot_diameter_fullres"] * scale["microns_per_pixel"] == pytest.approx(100)


def test_default_is_what_the_registry_knows(shared, monkeypatch):
    from hggep_sc.datasets import _her2st

    monkeypatch.setattr(_her2st, "_section", lambda name: name)
    assert list(datasets.her2st()) == ["B4", "C2", "C3", "C4", "C5"]
    assert len(_her2st.SECTIONS) == 36
    with pytest.raises(ValueError, match=r"No section 'C7', 'Z1'.*A1, A2.*H3"):
        datasets.her2st(["C5", "C7", "Z1"])


def test_one_name_will_do():
    assert choose("C5", default=[], known=["C5"]) == ["C5"]


def test_a_small_image_is_not_enlarged(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    copy, scale = hires_copy(tmp_path / "a.png")
    np.testing.assert_array_equal(copy, pixels)
    assert scale == 1


def test_pitch_is_told_through_turn_and_outliers():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 30, (200, 2))
    turn = np.deg2rad(7)
    turned = array @ (37.5 * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])) + 900
    pixels = turned + rng.normal(0, 2, turned.shape)
    pixels[:10] += 900
    assert pitch(array, pixels) == pytest.approx(37.5, rel=0.005)


def test_panel_is_that_of_the_published_figures(sections, shared):
    panel = datasets.her2st_panel()
    assert panel == (shared / "reference" / "her2st_785_genes.txt").read_text().split()
    assert len(set(panel)) == 785
    assert set(panel) <= set(sections["C5"].var_names)


def test_patient_is_the_first_letter(sections):
    assert {name: section.obs["patient"].unique().tolist() for name, section in sections.items()} == {
        "C5": ["C"],
        "B4": ["B"],
    }
