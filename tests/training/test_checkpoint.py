import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import hggep_sc as hggep
from helpers import CPU, TINY
from hggep_sc.storage.sealed import sealed, unsealed
from hggep_sc.training.checkpoint import WholeCheckpoints, read_checkpoint

ENTRIES = {"state_dict": {}, "optimizer_states": [], "lr_schedulers": [], "callbacks": {}, "loops": {}}
HOW = {"genes": 8, "encoder": "X_emb", "config": {**TINY, "cross_fit": False, "epochs": 2}, **CPU}


@pytest.fixture
def embedded(sections):
    for section in sections.values():
        section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 5))
    return sections


@pytest.fixture
def run(embedded, tmp_path):
    """The folder of a fit that has ended."""
    hggep.tl.fit(embedded, checkpoint_dir=tmp_path / "run", **HOW)
    return tmp_path / "run"


def resumed(embedded, run):
    return hggep.tl.fit(embedded, checkpoint_dir=run, resume=True, **HOW)


class Planted:
    """What a pickle runs when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_what_lightning_gathers_comes_back(tmp_path):
    """Numbers to the bit, names that are numbers, what is not finite; tuples as lists."""
    given = {
        **ENTRIES,
        "state_dict": {"a.b": torch.arange(3.0), "/": torch.tensor(2), "a/b": torch.ones(2, 2).t()},
        "optimizer_states": [{"state": {0: {"a": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"betas": (0.9, 0.1)}]}],
        "callbacks": {"KeepBest": {"score": -np.inf, "epoch": -1, "weights": {}}, "x": {"tensor": 1, "dict": None}},
        "epoch": 3,
        "flag": True,
        "pi": np.float64(np.pi) / 3,
    }
    WholeCheckpoints().save_checkpoint(given, tmp_path / "new" / "last.ckpt")
    found = WholeCheckpoints().load_checkpoint(tmp_path / "new" / "last.ckpt")
    state = found["state_dict"]
    assert state.keys() == given["state_dict"].keys()
    assert all(torch.equal(state[name], values) for name, values in given["state_dict"].items())
    (optimizer,) = found["optimizer_states"]
    assert optimizer["state"] == {0: {"a": torch.tensor(3.0)}, 1: {}}
    assert optimizer["param_groups"] == [{"betas": [0.9, 0.1]}]
    assert {name: found[name] for name in ("callbacks", "epoch", "flag", "pi")} == {
        name: given[name] for name in ("callbacks", "epoch", "flag", "pi")
    }
    WholeCheckpoints().remove_checkpoint(tmp_path / "new" / "last.ckpt")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_json_does_not_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold /callbacks/x, a Planted"):
        WholeCheckpoints().save_checkpoint({"callbacks": {"x": Planted(tmp_path)}}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written_by", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("lightning_asks", [{}, {"weights_only": False}, {"map_location": "cpu", "weights_only": None}])
def test_nothing_of_a_pickle_is_run(tmp_path, written_by, lightning_asks):
    file = tmp_path / "last.ckpt"
    written_by({**ENTRIES, "planted": Planted(tmp_path / "executed")}, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged, or no checkpoint of a fit \(it .*\): remove it"):
        WholeCheckpoints().load_checkpoint(file, **lightning_asks)
    assert list(tmp_path.iterdir()) == [file]


def test_a_pickle_in_the_place_of_a_checkpoint_is_not_run(embedded, run, tmp_path):
    torch.save({**ENTRIES, "planted": Planted(tmp_path / "executed")}, run / "last.ckpt")
    message = r"last\.ckpt is damaged, .*\(it is a pickle, as an earlier version .* not opened\): remove it"
    with pytest.raises(ValueError, match=message):
        resumed(embedded, run)
    assert not (tmp_path / "executed").exists()


def edited(change):
    """The content of a checkpoint of which something has been changed by someone who knows the format."""

    def damage(content):
        tensors, note = unsealed(content)
        change(tensors, note)
        return sealed(tensors, note)

    return damage


def without(entry):
    return edited(lambda _, note: note.update(dict=[pair for pair in note["dict"] if pair[0] != entry]))


def drop_weights(tensors, note):
    (state,) = (entry for name, entry in note["dict"] if name == "state_dict")
    state["dict"].pop()


def shorten_weights(tensors, note):
    name = next(name for name in tensors if name.startswith("/state_dict") and tensors[name].ndim == 2)
    tensors[name] = tensors[name][1:]


DAMAGES = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:1000],
    "a byte less": lambda content: content[:-1],
    "another bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "text": lambda _: b"not a checkpoint",
    "JSON": lambda _: b'{"epoch": 3}',
    "of other tensors": lambda _: sealed({"a": torch.zeros(3)}),
    "a list": lambda _: sealed({}, [1, 2]),
    "a tensor that is not there": edited(lambda tensors, _: tensors.popitem()),
    "no optimizer": without("optimizer_states"),
    "no weights": without("state_dict"),
    "a weight less": edited(drop_weights),
    "a weight of another shape": edited(shorten_weights),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(embedded, run, damage):
    """What is in the folder stays as it is; without the file all is trained anew."""
    whole = resumed(embedded, run)
    file = run / "last.ckpt"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=rf"{file} is (damaged|of another network).*: remove it, and what was trained"):
        resumed(embedded, run)
    assert file.read_bytes() == before
    file.unlink()
    assert resumed(embedded, run).id == whole.id


def test_a_damaged_checkpoint_of_a_further_network_is_named(embedded, tmp_path):
    how = {**HOW, "config": {**HOW["config"], "ensemble": 2}, "checkpoint_dir": tmp_path}
    whole = hggep.tl.fit(embedded, **how)
    file = tmp_path / "fit_1" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file} is damaged, .*: remove it, and what was trained is trained anew"):
        hggep.tl.fit(embedded, resume=True, **how)
    file.unlink()
    assert hggep.tl.fit(embedded, resume=True, **how).id == whole.id


def test_a_checkpoint_that_is_no_file_does_not_hang(tmp_path):
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / make.__name__)
        with pytest.raises(ValueError, match=rf"{make.__name__} is damaged, .*it is no file"):
            read_checkpoint(tmp_path / make.__name__)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"sections": [', b"[]", b"{}", b"3", b"\xff\xfe", b'{"learning_rate": 1}'],
    ids=["empty", "cut", "a list", "nothing", "a number", "no text", "of another tool"],
)
@pytest.mark.parametrize("begun", [True, False])
def test_a_damaged_mark_is_named_and_stays(embedded, run, content, begun):
    """With a checkpoint beside it, and without, where it may be a file of the user's."""
    (run / "fit.json").write_bytes(content)
    if not begun:
        (run / "last.ckpt").unlink()
    for resume in [True] if begun else [True, False]:
        with pytest.raises(
            ValueError, match=rf"{run}/fit\.json is damaged, or not of a fit .*: remove {run} and begin"
        ):
            hggep.tl.fit(embedded, checkpoint_dir=run, resume=resume, **HOW)
    assert (run / "fit.json").read_bytes() == content


def test_a_mark_of_another_version_is_refused(embedded, run):
    mark = json.loads((run / "fit.json").read_text())
    del mark["version of hggep_sc"]
    (run / "fit.json").write_text(json.dumps(mark))
    with pytest.raises(ValueError, match=r"belongs to another fit \(different version of hggep_sc\): resume with the"):
        resumed(embedded, run)


@pytest.mark.parametrize("name", ["last.ckpt", "fit_1/last.ckpt", "fit_12/last.ckpt"])
def test_checkpoints_of_others_are_not_removed(embedded, tmp_path, name):
    """Runs of the user's beside each other, by another tool or this one."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name}, but no fit\.json, which tells .*: choose another folder"):
        resumed(embedded, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_for_a_folder(embedded, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=rf"checkpoint_dir='{tmp_path}/run' is a file: give a folder"):
        hggep.tl.fit(embedded, checkpoint_dir=tmp_path / "run", **HOW)


def test_a_full_disk_while_the_mark_is_written_leaves_none(embedded, tmp_path, monkeypatch):
    real = Path.write_text

    def full(self, *given):
        if self.name.startswith("fit.json"):
            real(self, "{")
            raise OSError(28, "No space left on device")
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"fit\.json could not be written, .*No space left on device"):
            hggep.tl.fit(embedded, checkpoint_dir=tmp_path, **HOW)
    assert [file.name for file in tmp_path.iterdir()] == ["fit.lock"]
    hggep.tl.fit(embedded, checkpoint_dir=tmp_path, **HOW)


def test_last_epoch_is_written_as_often_as_asked(embedded, tmp_path, monkeypatch):
    epochs, save = [], WholeCheckpoints.save_checkpoint
    monkeypatch.setattr(
        WholeCheckpoints,
        "save_checkpoint",
        lambda self, content, *given, **how: epochs.append(content["epoch"]) or save(self, content, *given, **how),
    )
    how = {**HOW, "config": {**HOW["config"], "epochs": 7}}
    hggep.tl.fit(embedded, checkpoint_dir=tmp_path, checkpoint_every=3, **how)
    assert epochs == [2, 5]
