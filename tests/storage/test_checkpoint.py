import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from hggep_sc.storage.checkpoint import Checkpoint, OtherCheckpointError, Parts, open_checkpoints, remove_checkpoints
from hggep_sc.storage.sealed import sealed

SPOTS = np.array([4, 7, 9])
VALUES = torch.arange(6.0).reshape(3, 2)


def test_what_is_put_away_comes_back(tmp_path):
    for _ in range(2):  # by a later process
        parts = Parts(tmp_path / "new" / "features")
        parts.write(SPOTS, features=VALUES.t().contiguous().t(), more=VALUES.bool())
        assert SPOTS in parts
        assert np.array([5, 7, 9]) not in parts
        assert set(parts.read(SPOTS)) == {"features", "more"}
        assert torch.equal(parts.read(SPOTS)["features"], VALUES)
    parts.write(np.array([12, 1]), features=VALUES[:2])
    assert torch.equal(parts.read(np.array([12, 1]))["features"], VALUES[:2])
    assert torch.equal(parts.read(SPOTS)["features"], VALUES)


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nowhere, _ = Checkpoint().in_chunks(lambda: 8)
    for parts in (nowhere.features, nowhere.predicted, Parts(None)):
        parts.write(SPOTS, features=VALUES)
        assert SPOTS not in parts
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    parts = Parts(tmp_path)
    parts.write(SPOTS, features=VALUES)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for spots in (SPOTS, np.array([1, 2])):
        with pytest.raises(KeyboardInterrupt):
            parts.write(spots, features=VALUES + 1)
    assert np.array([1, 2]) not in parts
    assert torch.equal(parts.read(SPOTS)["features"], VALUES)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda _: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: save(load(content)),
        lambda _: sealed({"features": VALUES}),
    ],
    ids=["cut", "empty", "another bit", "no checksum", "no spots"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    parts = Parts(tmp_path)
    parts.write(SPOTS, features=VALUES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{file} is damaged .*: remove it, and what it held is computed anew"):
        parts.read(SPOTS)


def test_chunks_stay_as_large_as_when_the_prediction_began(tmp_path):
    """Whatever memory is free later."""
    begun, size = Checkpoint(tmp_path).in_chunks(lambda: 8)
    assert size == 8
    begun.predicted.write(SPOTS, latent=VALUES)
    again, size = Checkpoint(tmp_path).in_chunks(lambda: pytest.fail("is known"))
    assert size == 8
    assert SPOTS in again.predicted
    assert SPOTS not in again.features


def test_other_spots_are_not_taken_for_those_asked_for(tmp_path):
    parts = Parts(tmp_path)
    parts.write(SPOTS, features=VALUES)
    with pytest.raises(ValueError, match="is of other spots: remove it"):
        parts.read(np.array([4, 7]))


# --- a folder


def test_sections_are_apart(tmp_path):
    for _ in range(2):
        with open_checkpoints(tmp_path / "new", {"model": "a", "data": ("x", 1.0)}, 2) as (first, second):
            first.features.write(SPOTS, features=VALUES)
            assert SPOTS not in second.features


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"model": "b", "chunk_spots": 8}, r"belongs to another prediction \(different model\)"),
        ({"model": "b", "chunk_spots": None}, r"\(different chunk_spots, model\): go on with the same model, data and"),
    ],
)
def test_another_prediction_is_refused(tmp_path, later, message):
    with open_checkpoints(tmp_path, {"model": "a", "chunk_spots": np.int64(8)}, 1):
        pass
    before = {file: file.read_bytes() for file in tmp_path.rglob("*")}
    with pytest.raises(OtherCheckpointError, match=message), open_checkpoints(tmp_path, later, 1):
        pass
    assert {file: file.read_bytes() for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_refused(tmp_path, kind):
    path = tmp_path / "notes"
    if kind == "folder":
        path.mkdir()
    (path if kind == "file" else path / "mine.txt").write_text("mine")
    message = r"notes' is there, and not of a prediction: choose another folder"
    with pytest.raises(ValueError, match=message), open_checkpoints(path, {"model": "a"}, 1):
        pass
    remove_checkpoints(path)
    assert {file.name for file in tmp_path.rglob("*")} == {"notes"} | ({"mine.txt"} if kind == "folder" else set())


def test_a_kill_while_the_folder_is_marked_does_not_close_it(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from hggep_sc.storage.replace import replacing
folder = Path({str(tmp_path)!r})
(folder / "lock").touch()
with replacing(folder / "identity.json") as part:
    part.write_text("{{")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with open_checkpoints(tmp_path, {"model": "a"}, 1) as (checkpoint,):
        checkpoint.features.write(SPOTS, features=VALUES)
    assert {file.name for file in tmp_path.iterdir()} == {"identity.json", "lock", "section_0"}


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"\xff", b'{"model": '])
def test_a_damaged_mark_is_named(tmp_path, content):
    (tmp_path / "identity.json").write_bytes(content)
    message = r"identity\.json is damaged .*: remove .*, and begin anew"
    with pytest.raises(ValueError, match=message), open_checkpoints(tmp_path, {"model": "a"}, 1):
        pass


def test_one_at_a_time(tmp_path):
    """Two would remove what the other still needs. After the first has left, by an error too, the next may."""
    message = "another process or thread is at work on it; wait for its end"
    for _ in range(2):
        with suppress(ZeroDivisionError), open_checkpoints(tmp_path, {"model": "a"}, 1):
            with pytest.raises(ValueError, match=message), open_checkpoints(tmp_path, {"model": "a"}, 1):
                pass
            1 / 0  # noqa: B018


def test_what_cannot_be_removed_is_said(tmp_path, monkeypatch, caplog):
    with open_checkpoints(tmp_path / "run", {"model": "a"}, 1):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_: None)
        remove_checkpoints(tmp_path / "run")
    assert "run could not be removed, and is no longer needed" in caplog.text
    remove_checkpoints(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_another_is_at_work_on_is_not_removed(tmp_path):
    with open_checkpoints(tmp_path / "run", {"model": "a"}, 1) as (checkpoint,):
        checkpoint.features.write(SPOTS, features=VALUES)
        remove_checkpoints(tmp_path / "run")
        assert torch.equal(checkpoint.features.read(SPOTS)["features"], VALUES)
    remove_checkpoints(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_not_removed(tmp_path):
    with open_checkpoints(tmp_path / "run", {"model": "a"}, 2) as checkpoints:
        for checkpoint in checkpoints:
            checkpoint.features.write(SPOTS, features=VALUES)
    mine = {tmp_path / "run" / "notes.txt", tmp_path / "run" / "section_0" / "features" / "my.safetensors"}
    for file in mine:
        file.write_text("mine")
    remove_checkpoints(tmp_path / "run")
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == mine


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_a_kill_while_a_folder_is_removed_does_not_close_it(tmp_path, monkeypatch, call):
    """Stopped at each of its files and folders in turn, it can be opened, and removed, again."""

    def stopped_at(number):
        folder, real, calls = tmp_path / str(number), getattr(os, call), []

        def stopped(*given, **options):
            calls.append(given)
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(*given, **options)

        with open_checkpoints(folder, {"model": "a"}, 2) as checkpoints:
            for checkpoint in checkpoints:
                checkpoint.features.write(SPOTS, features=VALUES)
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, call, stopped)
            remove_checkpoints(folder)
        if len(calls) == number:
            with open_checkpoints(folder, {"model": "a"}, 2):
                pass
            remove_checkpoints(folder)
        assert not folder.exists()
        return len(calls)

    number = 1
    while stopped_at(number) == number:
        number += 1
    assert number > 4
