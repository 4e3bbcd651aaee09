from pathlib import Path

import numpy as np
import pytest
import torch

from hggep_sc.checkpoint import Checkpoint, Parts, open_checkpoints

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
    found = {tuple(spots): tensors["features"] for spots, tensors in parts}
    assert set(found) == {(4, 7, 9), (12, 1)}
    assert torch.equal(found[12, 1], VALUES[:2])
    parts.remove(SPOTS)
    parts.remove(SPOTS)
    assert SPOTS not in parts
    assert [tuple(spots) for spots, _ in parts] == [(12, 1)]


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nowhere = Checkpoint().of_chunks(8)
    for parts in (nowhere.features, nowhere.described, nowhere.predicted):
        parts.write(SPOTS, features=VALUES)
        assert SPOTS not in parts
        assert list(parts) == []
        parts.remove(SPOTS)
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
    assert len(list(parts)) == 1


def test_a_damaged_file_is_named(tmp_path):
    parts = Parts(tmp_path)
    parts.write(SPOTS, features=VALUES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    for read in (lambda: parts.read(SPOTS), lambda: list(parts)):
        with pytest.raises(ValueError, match=rf"{file} is damaged .*: remove it, and what it held is computed anew"):
            read()


def test_chunks_of_another_size_are_apart(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.of_chunks(8).predicted.write(SPOTS, latent=VALUES)
    assert SPOTS in checkpoint.of_chunks(8).predicted
    for other in (checkpoint.of_chunks(16).predicted, checkpoint.of_chunks(8).described, checkpoint.predicted):
        assert SPOTS not in other


# --- a folder


def test_sections_are_apart(tmp_path):
    for _ in range(2):
        first, second = open_checkpoints(tmp_path / "new", {"model": "a", "data": ["x"]}, 2)
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
    open_checkpoints(tmp_path, {"model": "a", "chunk_spots": np.int64(8)}, 1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=message):
        open_checkpoints(tmp_path, later, 1)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_refused(tmp_path, kind):
    path = tmp_path / "notes"
    if kind == "folder":
        path.mkdir()
    (path if kind == "file" else path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes' is there, and not of a prediction: choose another folder"):
        open_checkpoints(path, {"model": "a"}, 1)
    assert {file.name for file in tmp_path.rglob("*")} <= {"notes", "mine.txt"}
