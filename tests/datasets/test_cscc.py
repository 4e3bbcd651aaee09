"""Sections in the registry's layout: read from the folder, packed or not, or downloaded; the files are stand-ins."""

import gzip
import http.server
import io
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hggep_sc as hggep
from hggep_sc import datasets, settings
from hggep_sc.datasets import _cscc

GENES = ["KRT5", "KRT14", "MMP10"]
GRID = [(x, y) for x in range(10, 16) for y in range(20, 25)]


def files_of(name, accession):
    """What a section has on the server, by name: 30 spots 30 px apart, of which the last has no place."""
    names = [f"{x}x{y}" for x, y in GRID]
    counts = pd.DataFrame(np.arange(90).reshape(30, 3), index=names, columns=GENES)
    spots = pd.DataFrame(GRID, columns=["x", "y"])[:-1]
    spots = spots.assign(new_x=spots.x + 0.1, new_y=spots.y - 0.1, pixel_x=30.0 * spots.x, pixel_y=30.0 * spots.y)
    pixels = np.random.default_rng(0).integers(0, 255, (800, 600, 3), dtype=np.uint8)
    return {
        f"{accession}_{name}_stdata.tsv": counts.to_csv(sep="\t").encode(),
        f"{accession}_spot_data-selection-{name}.tsv": spots.to_csv(sep="\t", index=False).encode(),
        f"{accession}_{name}.jpg": _jpeg(pixels),
    }


def _jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    monkeypatch.setattr(_cscc, "FILES_URL", "http://127.0.0.1:9/")  # nobody is there
    (tmp_path / "cscc").mkdir()
    return tmp_path / "cscc"


@pytest.mark.parametrize("packed", [True, False])
def test_a_section_is_read_from_the_folder(folder, packed):
    for name, content in files_of("P5_ST_rep2", "GSM4284320").items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    section = datasets.cscc("P5_ST_rep2")["P5_ST_rep2"]
    assert section.shape == (29, 3)
    assert section.var_names.tolist() == GENES
    np.testing.assert_array_equal(section.X.toarray(), np.arange(90).reshape(30, 3)[:29])
    np.testing.assert_array_equal(section.obsm["spatial"], 30.0 * np.array(GRID[:29]))
    assert section.obs["array_col"].tolist() == [x for x, _ in GRID[:29]]
    assert section.obs["array_row"].tolist() == [y for _, y in GRID[:29]]
    assert section.obs["patient"].unique().tolist() == ["P5"]
    library = section.uns["spatial"]["P5_ST_rep2"]
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(5)  # 150 um are 30 px
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(22)
    assert library["images"]["hires"].shape == (800, 600, 3)
    assert library["metadata"]["source_image_path"] == str(folder / "GSM4284320_P5_ST_rep2.jpg")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_each_section_has_its_accession(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(_cscc, "fetch", lambda url, **_: asked.append(url) or 1 / 0)
    for name in _cscc.SECTIONS:
        with pytest.raises(ZeroDivisionError):
            datasets.cscc(name)
    assert len(asked) == 12
    geo = "http://127.0.0.1:9/GSM4284nnn"
    assert asked[0] == f"{geo}/GSM4284316/suppl/GSM4284316_P2_ST_rep1_stdata.tsv.gz"
    assert asked[5] == f"{geo}/GSM4284321/suppl/GSM4284321_P5_ST_rep3_stdata.tsv.gz"
    assert asked[11] == f"{geo}/GSM4284327/suppl/GSM4284327_P10_ST_rep3_stdata.tsv.gz"


def test_what_is_missing_is_downloaded_once(folder, tmp_path, monkeypatch):
    upstream = tmp_path / "upstream"
    place = upstream / "GSM4284nnn" / "GSM4284327" / "suppl"
    place.mkdir(parents=True)
    for name, content in files_of("P10_ST_rep3", "GSM4284327").items():
        (place / f"{name}.gz").write_bytes(gzip.compress(content))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=upstream)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(_cscc, "FILES_URL", f"http://127.0.0.1:{server.server_port}/")
        first = datasets.cscc(["P10_ST_rep3"])["P10_ST_rep3"]
        server.shutdown()
        thread.join()
    assert first.n_obs == 29
    again = datasets.cscc(["P10_ST_rep3"])["P10_ST_rep3"]  # nobody answers any more
    assert (again.X != first.X).nnz == 0


def test_a_damaged_image_is_named_and_nothing_half_is_left(folder):
    for name, content in files_of("P2_ST_rep1", "GSM4284316").items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    packed = folder / "GSM4284316_P2_ST_rep1.jpg.gz"
    packed.write_bytes(packed.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"P2_ST_rep1\.jpg\.gz cannot be unpacked.*Delete it"):
        datasets.cscc("P2_ST_rep1")
    assert sorted(path.suffix for path in folder.iterdir()) == [".gz"] * 3


def test_a_spot_file_that_marks_what_is_selected(folder):
    for name, content in files_of("P2_ST_rep1", "GSM4284316").items():
        if "selection" in name:
            lines = content.decode().splitlines()
            marked = [f"{lines[0]}\tselected", *(f"{line}\t{i % 2}" for i, line in enumerate(lines[1:]))]
            content = "\n".join(marked).encode()
        (folder / name).write_bytes(content)
    section = datasets.cscc("P2_ST_rep1")["P2_ST_rep1"]
    assert section.obs_names.tolist() == [f"{x}x{y}" for x, y in GRID[1:29:2]]


def test_offline_says_which_file_belongs_where(folder):
    with pytest.raises(ConnectionError, match=r"P2_ST_rep1_stdata\.tsv\.gz is not in .*cscc.*HGGEP_DATASETDIR"):
        datasets.cscc("P2_ST_rep1")


def test_unknown_section():
    with pytest.raises(ValueError, match=r"No section 'P4_ST_rep1'.*P2_ST_rep1.*P10_ST_rep3"):
        datasets.cscc(["P4_ST_rep1"])


def test_sections_train_and_are_predicted(folder):
    for name, accession in {"P2_ST_rep1": "GSM4284316", "P5_ST_rep1": "GSM4284319"}.items():
        for file, content in files_of(name, accession).items():
            (folder / file).write_bytes(content)
    sections = datasets.cscc(["P2_ST_rep1", "P5_ST_rep1"])
    how = {"config": {"patch_size": 32, "alphas": (1.0,)}, "weights": None, "progress": False}
    model = hggep.tl.fit({"P2_ST_rep1": sections["P2_ST_rep1"]}, method="ridge", genes=3, **how)
    hggep.tl.predict(sections["P5_ST_rep1"], model, progress=False)
    assert np.isfinite(sections["P5_ST_rep1"].layers["hggep"]).all()


@pytest.mark.parametrize(
    "damage", [lambda packed: b"no gzip", lambda packed: packed[:-20], lambda packed: packed[:20] + b"\xff" * 50]
)
def test_a_damaged_image_is_named(folder, damage):
    for name, content in files_of("P5_ST_rep2", "GSM4284320").items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(damage(packed) if name.endswith("jpg") else packed)
    with pytest.raises(hggep.errors.WrongFileError, match=r"jpg\.gz cannot be unpacked: .* Delete it"):
        datasets.cscc("P5_ST_rep2")


def test_places_may_be_written_with_decimals(folder):
    for name, content in files_of("P5_ST_rep2", "GSM4284320").items():
        if "spot_data" in name:
            spots = pd.read_csv(io.BytesIO(content), sep="\t").astype({"x": float, "y": float})
            content = spots.assign(x=spots.x - 1e-9).to_csv(sep="\t", index=False).encode()
        (folder / name).write_bytes(content)
    section = datasets.cscc("P5_ST_rep2")["P5_ST_rep2"]
    assert section.obs_names.tolist() == [f"{x}x{y}" for x, y in GRID[:29]]
    assert section.obs["array_col"].tolist() == [x for x, _ in GRID[:29]]
