import logging
import os
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd

import hggep_sc as hggep
from helpers import WAIT, as_spatialdata, assert_same
from hggep_sc.tl import _predict_slides as module

HOW = {"device": "cpu", "progress": False}


@pytest.fixture
def slides(sections, tmp_path):
    """An object, the path of an AnnData, and one that cannot be predicted: its counts are there, its image is not."""
    files = {name: tmp_path / "slides" / f"{name}.h5ad" for name in ("S2", "S3")}
    files["S2"].parent.mkdir()
    del sections["S3"].uns["spatial"]
    for name, file in files.items():
        sections[name].write_h5ad(file)
    return {"S1": sections["S1"], "S2": files["S2"], "S3": str(files["S3"])}


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def predicted(slide, model, **keywords):
    return hggep.tl.predict(slide, model, copy=True, **HOW, **keywords)


def without_record(data):
    del data.uns["hggep_slide"]
    return data


@pytest.mark.slow
def test_by_processes(slides, trained, tmp_path, caplog):
    before, out = slides["S1"].copy(), tmp_path / "out"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        table = hggep.tl.predict_slides(slides, trained, out, executor=executor, **HOW)
    assert_same(slides["S1"], before)
    assert table["slide"].tolist() == ["S1", "S2", "S3"]
    assert table["spots"].tolist() == [40, 40, 0]
    assert table["error"].tolist()[:2] == ["", ""]
    assert table["error"][2].startswith("ValueError: ")
    assert (table["seconds"][:2] > 0).all()
    assert "slide 'S3' failed: ValueError" in caplog.text
    assert set(times(out)) == {"S1.h5ad", "S2.h5ad"}
    for name, slide in {"S1": slides["S1"], "S2": ad.read_h5ad(slides["S2"])}.items():
        result = without_record(ad.read_h5ad(out / f"{name}.h5ad"))
        expected = predicted(slide, trained)
        np.testing.assert_allclose(result.layers["hggep"], expected.layers["hggep"], rtol=1e-4, atol=1e-5)
        assert (result.X != slide.X).nnz == 0
        assert result.uns["hggep"]["model"] == trained.id


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(1)])
def test_progress(slides, trained, tmp_path, capsys, executor):
    """A bar over slides; over the spots of each, where they are predicted here."""
    del slides["S3"]
    hggep.tl.predict_slides(slides, trained, tmp_path / "out", executor=executor, device="cpu", progress=True)
    shown = capsys.readouterr().err
    assert "slides: 100%" in shown
    assert "2/2" in shown
    assert ("predict: 100%" in shown and "40/40" in shown) == (executor is None)


def test_a_rerun_does_what_is_not_done(slides, sections, trained, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    first = hggep.tl.predict_slides(slides, trained, out, **HOW)
    written = times(out)
    done = []
    real = module._predict_slide
    monkeypatch.setattr(module, "_predict_slide", lambda slide: done.append(slide.name) or real(slide))
    again = hggep.tl.predict_slides(slides, trained, out, **HOW)
    assert done == ["S3"]
    assert times(out) == written
    assert again.drop(columns="error").equals(first.drop(columns="error"))
    slides["S3"] = sections["S2"]
    mended = hggep.tl.predict_slides(slides, trained, out, **HOW)
    assert done == ["S3", "S3"]
    assert mended["error"].eq("").all()
    assert "predicted again" not in caplog.text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("settings", ["S1", "S2"]),
        ("model", ["S1", "S2"]),
        ("scale of one", ["S1"]),
        ("file", ["S2"]),
        ("place of a spot", ["S1"]),
        ("count", ["S1"]),
        ("image", ["S1"]),
        ("file gone", ["S2"]),
    ],
)
def test_what_has_changed_is_predicted_again(slides, trained, tmp_path, monkeypatch, caplog, change, expected):
    del slides["S3"]
    out, model, options = tmp_path / "out", trained, {}
    hggep.tl.predict_slides(slides, model, out, **HOW)
    if change == "settings":
        options = {"average_flips": False}
    elif change == "model":
        model = hggep.tl.fit(slides["S1"], method="gene_mean", genes=10)
    elif change == "scale of one":
        options = {"mpp": {"S1": 1.1}}
    elif change == "file":
        os.utime(slides["S2"], (1, 1))
    elif change == "place of a spot":
        slides["S1"].obsm["spatial"][3] += 1
    elif change == "count":
        slides["S1"].X[0, 0] += 1
    elif change == "image":
        library = slides["S1"].uns["spatial"]["S1"]
        library["images"]["full"] = 255 - library["images"]["hires"]
        library["scalefactors"]["tissue_full_scalef"] = library["scalefactors"]["tissue_hires_scalef"]
        options = {"image_key": {"S1": "full"}}
        hggep.tl.predict_slides(slides, model, out, **options, **HOW)
        library["images"]["full"][:] = 200
        caplog.clear()
    elif change == "file gone":
        (out / "S2.h5ad").unlink()
    done = []
    real = module._predict_slide
    monkeypatch.setattr(module, "_predict_slide", lambda slide: done.append(slide.name) or real(slide))
    with caplog.at_level(logging.WARNING):
        table = hggep.tl.predict_slides(slides, model, out, **options, **HOW)
    assert done == expected
    assert table["error"].eq("").all()
    assert ad.read_h5ad(out / f"{expected[0]}.h5ad").uns["hggep"]["model"] == model.id
    assert (f"slide {expected[0]!r} is predicted again" in caplog.text) == (change != "file gone")


def test_spatialdata(sections, trained, tmp_path, monkeypatch):
    """Written as a store beside; one on disk stays as it is."""
    on_disk = tmp_path / "slide.zarr"
    as_spatialdata(sections["S3"], scale_factors=[2]).write(on_disk)
    kept = {file: file.read_bytes() for file in on_disk.rglob("*") if file.is_file()}
    slides, out = {"object": as_spatialdata(sections["S2"]), "stored": on_disk}, tmp_path / "out"
    table = hggep.tl.predict_slides(slides, trained, out, **HOW)
    assert table["spots"].tolist() == [40, 40]
    assert sorted(file.name for file in out.iterdir()) == ["object.zarr", "stored.zarr"]
    assert {file: file.read_bytes() for file in on_disk.rglob("*") if file.is_file()} == kept
    result = sd.read_zarr(out / "stored.zarr")
    expected = predicted(sd.read_zarr(on_disk), trained)["table"].layers["hggep"]
    np.testing.assert_array_equal(result["table"].layers["hggep"], expected)
    assert set(result.images) == {"he"}

    monkeypatch.setattr(module, "_predict_slide", lambda slide: pytest.fail("predicted again"))
    assert hggep.tl.predict_slides(slides, trained, out, **HOW)["error"].eq("").all()
    monkeypatch.undo()
    table = hggep.tl.predict_slides(slides, trained, out, average_flips=False, **HOW)  # in the place of the earlier
    assert table["error"].eq("").all()
    assert sorted(file.name for file in out.iterdir()) == ["object.zarr", "stored.zarr"]


def test_no_counts_are_needed(sections, trained, tmp_path):
    sections["S3"].X = None
    table = hggep.tl.predict_slides({"S3": sections["S3"]}, trained, tmp_path, **HOW)
    assert table["error"].tolist() == [""]
    assert table["spots"].tolist() == [40]


def test_interrupted_in_the_middle_of_writing(slides, trained, tmp_path, monkeypatch):
    """Ctrl-C while the second is written: the first is there, of the second what was there before, and no half."""
    del slides["S3"]
    out = tmp_path / "out"
    hggep.tl.predict_slides({"S2": slides["S2"]}, trained, out, **HOW)
    before = (out / "S2.h5ad").read_bytes()
    real = ad.AnnData.write_h5ad

    def half(self, file, **keywords):
        real(self, file, **keywords)
        if "S2" in Path(file).name:
            os.truncate(file, 1000)
            raise KeyboardInterrupt

    monkeypatch.setattr(ad.AnnData, "write_h5ad", half)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        hggep.tl.predict_slides(slides, trained, out, average_flips=False, **HOW)
    monkeypatch.undo()
    assert {name for name in times(out) if not name.endswith(".unfinished")} == {"S1.h5ad", "S2.h5ad"}
    assert ad.read_h5ad(out / "S1.h5ad").uns["hggep"]["model"] == trained.id
    assert (out / "S2.h5ad").read_bytes() == before
    hggep.tl.predict_slides(slides, trained, out, average_flips=False, **HOW)
    assert set(times(out)) == {"S1.h5ad", "S2.h5ad"}


def test_an_interruption_cancels_what_has_not_begun(slides, trained, tmp_path, monkeypatch):
    begun, over = [], Event()

    def interrupted(slide):
        begun.append(slide.name)
        if slide.name == "0":
            raise KeyboardInterrupt
        over.wait(WAIT)

    monkeypatch.setattr(module, "_predict_slide", interrupted)
    many = {str(number): slides["S2"] for number in range(6)}
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            hggep.tl.predict_slides(many, trained, tmp_path / "out", executor=executor, **HOW)
        over.set()
    assert len(begun) <= 2


def test_a_full_disk_leaves_no_half(slides, sections, trained, tmp_path):
    """As large as a file may get stands in for the disk: the system refuses the write likewise.

    In a process of its own: what HDF5 could not write it tries again when Python ends, and crashes.
    """
    del slides["S3"]
    slides["stored"] = tmp_path / "stored.zarr"
    as_spatialdata(sections["S2"]).write(slides["stored"])
    out, (_, hard) = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    limited = {"initializer": resource.setrlimit, "initargs": (resource.RLIMIT_FSIZE, (20_000, hard))}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **limited) as executor:
        table = hggep.tl.predict_slides(slides, trained, out, executor=executor, **HOW)
    for name, error in zip(table["slide"], table["error"], strict=True):
        assert error.startswith("OSError")
        assert str(out / f"{name}.{'zarr' if name == 'stored' else 'h5ad'}") in error
    assert all(file.suffix == ".unfinished" for file in out.iterdir())
    assert hggep.tl.predict_slides(slides, trained, out, **HOW)["error"].eq("").all()


def test_a_file_of_the_users_is_not_replaced(slides, trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    slides["S1"].write_h5ad(out / "S1.h5ad")
    (out / "S2.h5ad").write_text("notes")
    before = times(out)
    table = hggep.tl.predict_slides(slides, trained, out, **HOW)
    assert table["error"].str.contains("no whole result of predict_slides").tolist() == [True, True, False]
    assert times(out) == before


@pytest.mark.parametrize(
    ("slides", "options", "error", "message"),
    [
        ({"a": "slide.svs"}, {}, ValueError, r"slides\['a'\]: .*slide.svs must be an .h5ad file .* or a .zarr store"),
        ({"a": 3}, {}, TypeError, r"slides\['a'\] must be an AnnData, a SpatialData or a path, not int"),
        ({"a/b": "slide.h5ad"}, {}, ValueError, r"'a/b' is to be the name of a file"),
        (["slide.h5ad"], {}, TypeError, "slides must be a dict of slides by name, not list"),
        ({"a": "a.h5ad"}, {}, ValueError, "the result would replace the slide"),
        ({"b": "a.h5ad"}, {"mpp": {"c": 1.0}}, KeyError, "`mpp` names 'c', but the slides are 'b'"),
    ],
)
def test_bad_input_is_refused_before_the_work(trained, tmp_path, monkeypatch, slides, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        hggep.tl.predict_slides(slides, trained, tmp_path, **options, **HOW)


def test_a_slide_that_is_not_there_is_named(trained, tmp_path):
    table = hggep.tl.predict_slides({"a": tmp_path / "gone.h5ad"}, trained, tmp_path / "out", **HOW)
    assert table["error"][0].startswith("FileNotFoundError: there is no ")
