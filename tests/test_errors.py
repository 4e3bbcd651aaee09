"""Every class of error and warning comes from a call of a user's, and warnings point at the line of that call."""

import inspect
import pickle
import socket
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import hggep_sc as hggep
from helpers import CPU, TINY, assert_same
from hggep_sc import errors, settings
from hggep_sc.datasets import _mob
from hggep_sc.errors import HggepError, HggepWarning
from hggep_sc.prediction import chunks
from hggep_sc.prediction.chunks import SCORES
from hggep_sc.runtime.executor import outcomes
from hggep_sc.runtime.messages import warn
from hggep_sc.runtime.threads import ahead

CLASSES = {name: found for name, found in vars(errors).items() if isinstance(found, type)}
HOW = {"device": "cpu", "progress": False}
BUILTINS = {
    "HggepError": Exception,
    "InputError": ValueError,
    "ImageError": ValueError,
    "MissingSlotError": KeyError,
    "ModelError": ValueError,
    "CheckpointError": ValueError,
    "OtherCheckpointError": ValueError,
    "DivergedError": RuntimeError,
    "WrongFileError": ValueError,
    "DownloadError": OSError,
    "UnreachableError": ConnectionError,
    "WeightsError": RuntimeError,
    "MissingPackageError": ImportError,
}


@pytest.fixture
def predicted(sections, trained):
    """A training section after its prediction."""
    hggep.tl.predict(sections["S1"], trained, **HOW)
    return sections["S1"]


def without_scale(section):
    """The same section, of which nothing tells um per px."""
    (entry,) = section.uns["spatial"].values()
    entry["scalefactors"].pop("microns_per_pixel", None)
    entry["metadata"].pop("technology", None)
    section.obs.drop(columns=["array_row", "array_col"], inplace=True)
    return section


# --- classes


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_is_a_builtin_too(name):
    found = CLASSES[name]
    assert issubclass(found, HggepError)
    assert issubclass(found, BUILTINS[name])


def test_every_class_is_an_error_or_a_warning_and_says_when_it_comes():
    rest = {name for name in CLASSES if name not in BUILTINS}
    assert all(issubclass(CLASSES[name], HggepWarning) for name in rest)
    assert issubclass(HggepWarning, UserWarning)
    assert all(inspect.getdoc(found).endswith(".") for found in CLASSES.values())
    raised = set(RAISED) | set(WARNED)
    assert raised | {"HggepError", "HggepWarning"} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_they_reach_other_processes(name):
    again = pickle.loads(pickle.dumps(CLASSES[name]("what, and what to do")))
    assert type(again) is CLASSES[name]
    assert str(again) == "what, and what to do"


# --- each comes from a call


def no_coordinates(sections, trained, folder, monkeypatch):
    sections["S3"].obsm["spatial"][3] = np.nan
    hggep.tl.predict(sections["S3"], trained, **HOW)


def no_image(sections, trained, folder, monkeypatch):
    (folder / "slide.png").write_text("no picture")
    hggep.pp.tissue_mask(folder / "slide.png")


def no_prediction(sections, trained, folder, monkeypatch):
    hggep.tl.evaluate(sections["S3"])


def no_model(sections, trained, folder, monkeypatch):
    hggep.HGGEP.load(folder)


def no_checkpoint(sections, trained, folder, monkeypatch):
    (folder / "notes.txt").write_text("of something else")
    hggep.tl.predict(sections["S3"], trained, checkpoint_dir=folder, **HOW)


def another_checkpoint(sections, trained, folder, monkeypatch):
    hggep.tl.predict(sections["S3"], trained, checkpoint_dir=folder, **HOW)
    hggep.tl.predict(sections["S3"], trained, checkpoint_dir=folder, chunk_spots=20, **HOW)


def diverging(sections, trained, folder, monkeypatch):
    config = {**TINY, "learning_rate": 1e6, "epochs": 5, "cross_fit": False, "linear": False}
    hggep.tl.fit(sections["S1"], genes=10, config=config, **CPU)


def wrong_file(sections, trained, folder, monkeypatch):
    monkeypatch.setattr(settings, "dataset_dir", folder)
    (folder / "mob").mkdir()
    (folder / "mob" / "alignment_table_MOB1.tsv").write_text("something else")
    hggep.datasets.mob(["MOB1"])


def no_folder_for_downloads(sections, trained, folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setattr(settings, "dataset_dir", folder / "file")
    hggep.datasets.mob(["MOB1"])


def no_server(sections, trained, folder, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(_mob, "FILES_URL", f"http://127.0.0.1:{probe.getsockname()[1]}/")
    monkeypatch.setattr(settings, "dataset_dir", folder)
    hggep.datasets.mob(["MOB1"])


def no_weights(sections, trained, folder, monkeypatch):
    (folder / "file").touch()
    for name in ("dataset_dir", "cache_dir"):
        monkeypatch.setattr(settings, name, folder / "file")
    hggep.tl.fit(sections["S1"], genes=10, config=TINY, **{**CPU, "weights": "imagenet"})


def no_package(sections, trained, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    hggep.tl.fit(sections["S1"], encoder="efficientnet_lite0", weights=None, genes=10, **{**HOW, "device": "cpu"})


RAISED = {
    "InputError": (no_coordinates, "NaN or infinite coordinates"),
    "ImageError": (no_image, "cannot be decoded"),
    "MissingSlotError": (no_prediction, "no prediction 'hggep'"),
    "ModelError": (no_model, "is not an hggep_sc model"),
    "CheckpointError": (no_checkpoint, "not of a prediction"),
    "OtherCheckpointError": (another_checkpoint, "belongs to another prediction"),
    "DivergedError": (diverging, "diverged in epoch"),
    "WrongFileError": (wrong_file, "is not the expected file"),
    "DownloadError": (no_folder_for_downloads, "nothing can be written"),
    "UnreachableError": (no_server, "cannot be reached"),
    "WeightsError": (no_weights, "weights=None for random weights"),
    "MissingPackageError": (no_package, "pip install"),
}


@pytest.mark.parametrize("name", RAISED)
def test_each_error_is_raised(name, sections, trained, tmp_path, monkeypatch):
    call, message = RAISED[name]
    with pytest.raises(CLASSES[name], match=message) as raised:
        call(sections, trained, tmp_path, monkeypatch)
    assert type(raised.value) is CLASSES[name]


def test_a_missing_slot_s_message_is_not_in_quotes(sections):
    with pytest.raises(KeyError) as raised:
        hggep.tl.evaluate(sections["S3"])
    assert str(raised.value).startswith("no prediction 'hggep': ")


def spots_on_glass(sections, trained, folder, monkeypatch):
    some = sections["S3"]
    some.obsm["spatial"][0] = -30
    hggep.tl.predict(some, trained, **HOW)


def a_white_image(sections, trained, folder, monkeypatch):
    hggep.pp.tissue_mask(np.full((60, 80, 3), 255, dtype=np.uint8))


def no_scale(sections, trained, folder, monkeypatch):
    hggep.tl.predict(without_scale(sections["S3"]), trained, **HOW)


def another_scale(sections, trained, folder, monkeypatch):
    hggep.tl.predict(sections["S3"], trained, mpp=2.0, **HOW)


def trained_on(sections, trained, folder, monkeypatch):
    hggep.tl.predict(sections["S1"], trained, **HOW)
    hggep.tl.evaluate(sections["S1"])


def nothing_to_resume(sections, trained, folder, monkeypatch):
    config = {**TINY, "epochs": 1, "cross_fit": False}
    hggep.tl.fit(sections["S1"], genes=10, config=config, checkpoint_dir=folder / "run", resume=True, **CPU)


def without_a_gene(sections, trained, folder, monkeypatch):
    some = sections["S3"][:, [name for name in sections["S3"].var_names if name != trained.genes[0]]].copy()
    hggep.tl.predict(some, trained, **HOW)


def a_slide_that_is_not_there(sections, trained, folder, monkeypatch):
    hggep.tl.predict_slides({"S3": folder / "nowhere.h5ad"}, trained, folder / "out", **HOW)


def little_memory(sections, trained, folder, monkeypatch):
    room = SCORES * trained.config.vit_heads * 30**2  # for attention of 30 of the 40 spots
    monkeypatch.setattr(chunks, "_free_memory", lambda _: room)
    hggep.tl.predict(sections["S3"], trained, **HOW)


def over_something(sections, trained, folder, monkeypatch):
    sections["S3"].layers["hggep"] = sections["S3"].X.copy()
    hggep.tl.predict(sections["S3"], trained, overwrite=True, **HOW)


WARNED = {
    "InputWarning": (spots_on_glass, "lie outside the image"),
    "ImageWarning": (a_white_image, "no tissue found"),
    "ScaleWarning": (no_scale, "physical scale .* unknown"),
    "UnlikeTrainingWarning": (another_scale, "was scanned at 2 um per px"),
    "LeakageWarning": (trained_on, "goodness of fit"),
    "TrainingWarning": (nothing_to_resume, "holds no checkpoint yet"),
    "ResultWarning": (without_a_gene, "1 of the 20 predicted genes are not in var_names"),
    "FailedWarning": (a_slide_that_is_not_there, "slide 'S3' failed"),
    "MemoryWarning": (little_memory, "may not fit into"),
    "OverwriteWarning": (over_something, "replaced, as overwrite=True says"),
}


@pytest.mark.parametrize("name", WARNED)
def test_each_warning_is_given_at_the_line_of_the_call(name, sections, trained, tmp_path, monkeypatch):
    call, message = WARNED[name]
    with pytest.warns(CLASSES[name], match=message) as caught:
        call(sections, trained, tmp_path, monkeypatch)
    lines, first = inspect.getsourcelines(call)
    for found in caught:
        if issubclass(found.category, HggepWarning):
            assert found.filename == __file__
            assert "hggep." in lines[found.lineno - first]


# --- where they point, and how often they are shown


def test_from_a_thread_of_the_user_s(predicted, warned):
    line = threading.Thread(target=lambda: hggep.tl.evaluate(predicted))
    line.start()
    line.join()
    assert [(found.filename, found.category) for found in warned.recorded] == [(__file__, errors.LeakageWarning)]


def test_by_an_executor_they_point_at_the_call(sections, warned):
    """Folds warn where they are run, and are heard here."""
    some = {name: section[:6].copy() for name, section in sections.items()}
    how = {"methods": ["ridge"], "config": {"patch_size": 16}, "genes": some["S1"].var_names[:10], "weights": None}
    found = {}
    for executor in (None, ThreadPoolExecutor(2)):
        warned.clear()
        hggep.tl.cross_validate(some, executor=executor, **how, **HOW)
        found[executor is None] = {(str(one.message), one.filename, one.category) for one in warned.recorded}
    assert found[True] == found[False]
    assert {name for _, name, _ in found[True]} == {__file__}
    assert any("section 'S1' has 6 spots" in message for message, _, _ in found[True])


@pytest.mark.slow
def test_by_processes_they_point_at_the_call(sections, tmp_path, warned):
    training = {name: sections[name] for name in ("S1", "S2")}
    model = hggep.tl.fit(training, method="ridge", config={"patch_size": 16}, genes=10, **CPU)
    few, broken = sections["S3"][:5].copy(), sections["S3"][:6].copy()
    broken.layers["hggep"] = broken.X.copy()  # refused after the section was looked at
    warned.clear()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        hggep.tl.predict_slides({"few": few, "broken": broken}, model, tmp_path, executor=executor, **HOW)
    assert {found.filename for found in warned.recorded} == {__file__}
    assert "has 5 spots" in warned.text
    assert "slide 'broken' failed: ValueError: key_added= would replace layers['hggep']" in warned.text


def test_what_a_task_warned_of_before_it_failed_is_heard(warned):
    def work(number):
        warn(f"before {number}", errors.InputWarning)
        return 1 / number

    with ThreadPoolExecutor(1) as executor:
        for number, outcome in outcomes(work, [0, 1], executor):
            if number == 0:
                with pytest.raises(ZeroDivisionError):
                    outcome()
            else:
                assert outcome() == 1
    assert sorted(warned.messages) == ["before 0", "before 1"]


def test_a_thread_of_the_package_s_warns_at_the_call(warned):
    def work(number):
        warn(f"item {number}", errors.ImageWarning)
        return number

    assert list(ahead(work, range(3), 2)) == [0, 1, 2]
    assert sorted(warned.messages) == ["item 0", "item 1", "item 2"]
    assert {found.filename for found in warned.recorded} == {__file__}


def test_python_shows_a_message_once_for_each_line():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default", HggepWarning)
        for number in (1, 2, 2):
            warn(f"message {number}", errors.InputWarning)
        warn("message 2", errors.InputWarning)
    lines = [found.lineno for found in shown]
    assert [str(found.message) for found in shown] == ["message 1", "message 2", "message 2"]
    assert lines[0] == lines[1] < lines[2]


# --- made errors


def test_refused_by_a_filter_a_prediction_is_not_written(sections, trained):
    section, before = sections["S3"], sections["S3"].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.UnlikeTrainingWarning)
        with pytest.raises(errors.UnlikeTrainingWarning, match="was scanned at 2 um per px"):
            hggep.tl.predict(section, trained, mpp=2.0, **HOW)
        hggep.tl.predict(section.copy(), trained, **HOW)  # which gives no such warning
    assert_same(section, before)


@pytest.mark.parametrize("category", [errors.ResultWarning, errors.OverwriteWarning])
def test_refused_at_the_last_moment_a_prediction_is_not_written(sections, trained, category):
    section = sections["S3"][:, [name for name in sections["S3"].var_names if name != trained.genes[0]]].copy()
    section.layers["hggep"] = section.X.copy()
    before = section.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HggepWarning)
        warnings.simplefilter("error", category)
        with pytest.raises(category):
            hggep.tl.predict(section, trained, overwrite=True, **HOW)
    assert_same(section, before)


def test_refused_by_a_filter_an_evaluation_is_not_written(predicted):
    before = predicted.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.LeakageWarning)
        for _ in range(2):  # a second time as well
            with pytest.raises(errors.LeakageWarning, match="in the training: S1"):
                hggep.tl.evaluate(predicted)
    assert_same(predicted, before)


def test_refused_by_a_filter_an_image_s_warning_is_no_damaged_file(tmp_path):
    """Where files are opened whatever a decoder raises is taken for damage."""
    import tifffile

    path = tmp_path / "slide.ome.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", description="<OME><Image</OME>")
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.ScaleWarning)
        with pytest.raises(errors.ScaleWarning, match=r"slide\.ome\.tif: its OME metadata are not valid XML"):
            hggep.pp.tissue_mask(path)


@pytest.mark.parametrize("threads", [False, True])
def test_refused_by_a_filter_a_fold_that_fails_ends_the_call(sections, threads):
    section = sections["S1"]
    section.X = section.X.toarray()
    section.X[1:, :5] = 0  # one spot with counts in the panel is too few for a correlation
    section.X[0, :5] = 1
    how = {"methods": ["gene_mean"], "genes": section.var_names[:5].tolist(), "normalize": "panel"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.FailedWarning)
        with pytest.raises(errors.FailedWarning, match="fold 'S1', method 'gene_mean', seed 0 failed"):
            hggep.tl.cross_validate(sections, executor=ThreadPoolExecutor(1) if threads else None, **how, **HOW)


def test_silenced(predicted, warned):
    hggep.tl.evaluate(predicted)
    assert [found.category for found in warned.recorded] == [errors.LeakageWarning]
    warnings.filterwarnings("ignore", category=errors.LeakageWarning)
    hggep.tl.evaluate(predicted)
    assert len(warned.messages) == 1
