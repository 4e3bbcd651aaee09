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
from hggep_sc.storage.checkpoint import Parts
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
def test_by_processes(slides, trained, tmp_path, warned):
    before, out = slides["S1"].copy(), tmp_path / "out"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        table = hggep.tl.predict_slides(slides, trained, out, executor=executor, **HOW)
    assert_same(slides["S1"], before)
    assert table["slide"].tolist() == ["S1", "S2", "S3"]
    assert table["spots"].tolist() == [40, 40, 0]
    assert table["error"].tolist()[:2] == ["", ""]
    assert table["error"][2].startswith("InputError: ")
    assert (table["seconds"][:2] > 0).all()
    assert "slide 'S3' failed: InputError" in warned.text
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
    assert ("predict:" in shown and "/40" in shown) == (executor is None)


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
        ("settings of the package", ["S1", "S2"]),
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
    elif change == "settings of the package":
        monkeypatch.setattr(hggep.settings, "encoder_precision", "bfloat16")
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
    real = module.write_h5ad

    def half(table, file):
        real(table, file)
        if "S2" in file.name:
            os.truncate(file, 1000)
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_h5ad", half)
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
        (
            {"a": "a.txt"},
            {},
            ValueError,
            r"slides\['a'\]: .*a.txt must be an .h5ad file .*, a .zarr store .* or an image",
        ),
        ({"a": 3}, {}, TypeError, r"slides\['a'\] must be an AnnData, a SpatialData or a path, not int"),
        ({"a/b": "slide.h5ad"}, {}, ValueError, r"'a/b' is to be the name of a file"),
        (["slide.h5ad"], {}, TypeError, "slides must be a dict by name, not list"),
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
    assert table["error"][0].startswith("FileNotFoundError: slide ")
    assert "gone.h5ad does not exist" in table["error"][0]


def test_images_are_tiled(sections, trained, tmp_path, monkeypatch):
    """An image file and an OME-Zarr: what tile and predict give, and known again by size and time of change."""
    import zarr
    from ome_zarr.writer import write_multiscale
    from PIL import Image

    image = sections["S1"].uns["spatial"]["S1"]["metadata"]["source_image_path"]
    file = tmp_path / "slide.png"
    file.write_bytes(Path(image).read_bytes())
    pixels = np.asarray(Image.open(image).convert("RGB"))
    stored = tmp_path / "stored.zarr"
    write_multiscale([pixels.transpose(2, 0, 1)], zarr.open_group(stored, mode="w"), axes="cyx")
    slides = {"png": str(file), "zarr": stored, "no scale": file}
    out = tmp_path / "out"
    how = {"mpp": {"png": 1.0, "zarr": 1.0}, **HOW}
    table = hggep.tl.predict_slides(slides, trained, out, **how).set_index("slide")
    assert table["error"][["png", "zarr"]].tolist() == ["", ""]
    assert "give `mpp=`" in table["error"]["no scale"]
    expected = hggep.pp.tile(file, model=trained, mpp=1.0)
    hggep.tl.predict(expected, trained, **HOW)
    for name in ("png", "zarr"):
        found = ad.read_h5ad(out / f"{name}.h5ad")
        assert list(found.obs_names) == list(expected.obs_names)
        np.testing.assert_allclose(found.layers["hggep"], expected.layers["hggep"], rtol=1e-5)
    before = times(out)
    hggep.tl.predict_slides(slides, trained, out, **how)
    assert times(out) == before
    os.utime(file, (1, 1))
    hggep.tl.predict_slides(slides, trained, out, **how)
    changed = {name for name, at in times(out).items() if at != before.get(name)}
    assert changed == {"png.h5ad"}


def test_paths_that_are_no_slides_are_named(trained, tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    slides = {"pipe": tmp_path / "pipe.svs", "net": "https://example.org/slide.svs"}
    errors = hggep.tl.predict_slides(slides, trained, tmp_path / "out", **HOW)["error"].tolist()
    assert "is a named pipe, not a file" in errors[0]
    assert "is an address" in errors[1]


def test_slides_may_be_called_by_numbers(sections, trained, tmp_path):
    slides = {1: sections["S1"], np.int64(2): sections["S2"]}
    table = hggep.tl.predict_slides(slides, trained, tmp_path, mpp={1: 5.0, "2": 1.5}, **HOW)
    assert table["slide"].tolist() == ["1", "2"]
    used = [ad.read_h5ad(file).uns["hggep"]["sections"]["mpp"].tolist() for file in table["file"]]
    assert used == [[5.0], [1.5]]
    for twice in ({1: sections["S1"], "1": sections["S2"]}, {"1": sections["S1"], np.int64(1): sections["S2"]}):
        with pytest.raises(ValueError, match="slides: the number 1 and the name '1' are one name"):
            hggep.tl.predict_slides(twice, trained, tmp_path, **HOW)


def test_a_slide_that_another_call_is_at_work_on(sections, trained, tmp_path, monkeypatch):
    """With whatever settings: the second says so of the slide, and leaves alone what the first has."""
    slides, real, tables = {"S3": sections["S3"]}, Parts.write, []

    def meanwhile(self, spots, **tensors):
        real(self, spots, **tensors)
        if not tables:
            tables.append(None)  # once
            settings = [{}, {"chunk_spots": 20}]
            tables[:] = [hggep.tl.predict_slides(slides, trained, tmp_path, **how, **HOW) for how in settings]

    monkeypatch.setattr(Parts, "write", meanwhile)
    first = hggep.tl.predict_slides(slides, trained, tmp_path, average_flips=False, **HOW)
    assert first["error"].tolist() == [""]
    for table in tables:
        assert "is at work on it; wait for its end" in table["error"][0]
    expected = hggep.tl.predict(sections["S3"], trained, average_flips=False, copy=True, progress=False, device="cpu")
    found = ad.read_h5ad(tmp_path / "S3.h5ad")
    np.testing.assert_array_equal(found.layers["hggep"], expected.layers["hggep"])
    assert [file.name for file in tmp_path.iterdir()] == ["S3.h5ad"]


def test_a_slide_that_another_call_has_finished_meanwhile(sections, trained, tmp_path, monkeypatch):
    slides = {name: sections[name] for name in ("S1", "S2")}
    real, predicted = module.predict, []

    def counted(*given, **how):
        predicted.append(1)
        if len(predicted) == 1:
            hggep.tl.predict_slides({"S2": slides["S2"]}, trained, tmp_path, **HOW)
        return real(*given, **how)

    monkeypatch.setattr(module, "predict", counted)
    assert hggep.tl.predict_slides(slides, trained, tmp_path, **HOW)["error"].tolist() == ["", ""]
    assert len(predicted) == 2


@pytest.mark.parametrize(
    ("slot", "name"), [("layers", "counts"), ("uns", "hggep_slide"), ("obs", "hggep_uncertainty"), ("uns", "spatial")]
)
def test_what_a_slide_holds_is_not_replaced(sections, trained, tmp_path, slot, name):
    slide = sections["S3"]
    values = {"layers": slide.X.copy(), "obs": 1.0, "uns": slide.uns["spatial"] if name == "spatial" else {"mine": 1}}
    getattr(slide, slot)[name] = values[slot]
    key = {"layers": name, "uns": name if name == "spatial" else "hggep", "obs": "hggep"}[slot]
    table = hggep.tl.predict_slides({"S3": slide}, trained, tmp_path, key_added=key, **HOW)
    assert name in table["error"][0]
    assert list(tmp_path.iterdir()) == []


def test_backups_beside_results_stay(sections, trained, tmp_path):
    names = ["S3.h5ad.old", "S3.h5ad.part", "S3.h5ad.bak", "S3.h5ad.unfinished.txt"]
    for name in names:
        (tmp_path / name).write_text("mine")
    assert hggep.tl.predict_slides({"S3": sections["S3"]}, trained, tmp_path, **HOW)["error"].tolist() == [""]
    assert {file.name for file in tmp_path.iterdir()} == {"S3.h5ad", *names}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("executor", 5), ("path", 5), ("key_added", "a/b"), ("key_added", 5), ("batch_size", "x"), ("chunk_spots", 2.5),
        ("average_flips", "no"), ("progress", "yes"), ("overwrite", 1), ("mpp", {None: 1.0}),
        ("slides", {None: "a.h5ad"}),
    ],
)  # fmt: skip
def test_arguments_are_named(trained, tmp_path, argument, value):
    given = {"slides": {"a": tmp_path / "a.h5ad"}, "model": trained, "path": tmp_path / "out", **HOW, argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        hggep.tl.predict_slides(**given)
    assert not (tmp_path / "out").exists()
