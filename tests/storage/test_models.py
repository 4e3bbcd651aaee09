"""Folders of models; crashes and damage are tested with the models themselves."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from hggep_sc.storage import models as storage
from hggep_sc.storage.models import IncompleteError, load_model, save_model

NAME = "network-0123456789ab.safetensors"


class Model:
    method = "hggep"
    id = "0123456789ab"

    def __init__(self, values):
        self.values = values

    def save(self, path, *, id=id, overwrite=False):
        tensors = {"network": {"values": torch.as_tensor(self.values)}}
        content = {"genes": ["A"]}
        card = "---\nlibrary_name: hggep-sc\n---\n"
        how = {"card": card, "overwrite": overwrite}
        save_model(path, method=self.method, model_id=id, content=content, tensors=tensors, **how)

    @classmethod
    def load(cls, path):
        return load_model(path, method=cls.method, rebuild=lambda _, tensors: cls(tensors["network"]["values"]))


def edit(path, signed=True, **changes):
    """Change a manifest by hand, and its checksum likewise, as a hostile hand would."""
    content = json.loads((path / "model.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    if signed:
        content["checksum"] = storage._checksum(content)
    (path / "model.json").write_text(json.dumps(content))


def test_round_trip(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    assert Model.load(tmp_path / "m").values.tolist() == [0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "model.json", NAME]


def test_folders_from_before_methods_were_named(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", method=None)
    assert "method" not in json.loads((tmp_path / "m" / "model.json").read_text())
    Model.load(tmp_path / "m")


def test_method_of_a_later_version(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", method="oracle")
    with pytest.raises(ValueError, match=r"method 'oracle', not 'hggep': load it by hggep_sc\.methods\.load"):
        Model.load(tmp_path / "m")


def test_format_of_a_later_version(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", format=4)
    with pytest.raises(ValueError, match=r"has format 4.*reads format 3: update the package"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize("earlier", [1, 2])
def test_format_of_an_earlier_version(tmp_path, earlier):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", format=earlier)
    with pytest.raises(ValueError, match=rf"has format {earlier}.*reads format 3: fit the model again"):
        Model.load(tmp_path / "m")


def test_what_the_caller_left_out_is_no_damage(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")

    def rebuild(content, tensors):
        raise IncompleteError("give it with load(..., encoder=module)")

    with pytest.raises(ValueError, match=r"the model in .*m: give it with load") as raised:
        load_model(tmp_path / "m", method="hggep", rebuild=rebuild)
    assert "damaged" not in str(raised.value)


def test_another_models_id(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", id="ba9876543210")
    with pytest.raises(ValueError, match="not those that were saved together as ba9876543210"):
        Model.load(tmp_path / "m")


# --- what is the user's


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.md", "model.json.part", "model.json.old", "my-0123456789ab.safetensors"])
def test_files_of_others_are_named_and_stay(tmp_path, name, overwrite):
    Model(np.arange(3.0)).save(tmp_path)
    (tmp_path / name).write_text("mine")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=f"holds a model, and '{name}', which is not of it: move that away"):
        Model(np.arange(4.0)).save(tmp_path, overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    Model(np.arange(3.0)).save(tmp_path)
    (tmp_path / "network-ba9876543210.safetensors").write_bytes(b"half a model")
    Model(np.arange(4.0)).save(tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "model.json", NAME]
    assert Model.load(tmp_path).values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, there):
    path = tmp_path / "m"
    if there:
        Model(np.arange(3.0)).save(path)
    before = sorted(tmp_path.rglob("*"))
    real = storage._write

    def full(file, content):
        if file.name == "model.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, content)

    monkeypatch.setattr(storage, "_write", full)
    with pytest.raises(OSError, match=r"m could not be written: .*No space left"):
        Model(np.arange(4.0)).save(path, overwrite=True, id="ba9876543210")
    assert sorted(tmp_path.rglob("*")) == before
    if there:
        assert Model.load(path).values.tolist() == [0, 1, 2]


def test_one_saves_at_a_time(tmp_path, monkeypatch):
    """A second would find files without a manifest, and remove them."""
    real, refused = storage._write, []

    def watched(file, content):
        with pytest.raises(Timeout), FileLock(tmp_path / "lock", timeout=0):
            pass
        refused.append(file.name)
        real(file, content)

    monkeypatch.setattr(storage, "_write", watched)
    Model(np.arange(3.0)).save(tmp_path)
    assert refused == [NAME, "model.json", "README.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "model.json", NAME]


def test_a_model_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """The manifest was read, and its files are gone: another has taken its place."""
    Model(np.arange(3.0)).save(tmp_path, id="ba9876543210")
    real, calls = storage._blobs, []

    def late(path, content):
        if not calls:
            calls.append(content["id"])
            Model(np.arange(4.0)).save(tmp_path, overwrite=True)
        return real(path, content)

    monkeypatch.setattr(storage, "_blobs", late)
    assert Model.load(tmp_path).values.tolist() == [0, 1, 2, 3]
    assert calls == ["ba9876543210"]


# --- what is hostile


def test_a_manifest_that_was_changed_by_hand(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", signed=False, genes=["B"])
    with pytest.raises(ValueError, match=r"model\.json is damaged, or was changed by hand .* save the model again"):
        Model.load(tmp_path / "m")


def test_manifests_from_before_they_had_a_checksum(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", signed=False, checksum=None, sizes=None)
    assert set(json.loads((tmp_path / "m" / "model.json").read_text())) & {"checksum", "sizes"} == set()
    assert Model.load(tmp_path / "m").values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["/dev/zero", "network-/../../elsewhere", "../" + NAME, "./" + NAME, "network-0123456789ab.safetensors\0"]
)
def test_files_outside_of_the_folder_are_not_read(tmp_path, name, monkeypatch):
    Model(np.arange(3.0)).save(tmp_path / "m")
    content = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / NAME).write_bytes((tmp_path / "m" / NAME).read_bytes())
    edit(tmp_path / "m", files={name: content["files"][NAME]}, sizes={name: content["sizes"][NAME]})
    read = []
    real = storage.read_regular
    monkeypatch.setattr(storage, "read_regular", lambda file, *size: read.append(file) or real(file, *size))
    with pytest.raises(ValueError, match=r"damaged: .*'files' must be checksums by the names of files in the folder"):
        Model.load(tmp_path / "m")
    assert {file.name for file in read} == {"model.json"}


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "longer", "sparse"])
def test_only_regular_files_of_the_size_that_was_saved(tmp_path, kind, sizes):
    """None of which is waited for, or read into memory."""
    Model(np.arange(3.0)).save(tmp_path / "m")
    if not sizes:
        edit(tmp_path / "m", sizes=None)
    file = tmp_path / "m" / NAME
    content = file.read_bytes()
    if kind not in ("longer", "sparse"):
        file.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "longer":
        file.write_bytes(content + b"x")
    else:
        os.truncate(file, 2**42)
    expected = {
        "link": "is a link to another file",
        "pipe": "is no regular file",
        "folder": "is no regular file",
        "longer": "has 97 bytes, not the 96 that were saved" if sizes else "checksum differs",
        "sparse": "not the 96 that were saved" if sizes else "takes 4096.0 GiB",
    }[kind]
    with pytest.raises(ValueError, match=f"damaged: .*{expected}"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"5",
        b'"format"',
        b"{}",
        b"[" * 100_000,
        b'{"format":' * 100_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b'{"format": 3, "files": ' + b"[" * 100_000,
    ],
    ids=range(10),
)
def test_manifests_that_are_none(tmp_path, text):
    Model(np.arange(3.0)).save(tmp_path)
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"model\.json is damaged or not of an hggep_sc model"):
        Model.load(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path):
    Model(np.arange(3.0)).save(tmp_path)
    os.truncate(tmp_path / "model.json", 2**42)
    with pytest.raises(ValueError, match="damaged or not of an hggep_sc model: it has 4194304 MiB"):
        Model.load(tmp_path)


@pytest.mark.parametrize("manifest", ["pipe", "folder", "link"])
def test_a_manifest_that_is_no_file(tmp_path, manifest):
    Model(np.arange(3.0)).save(tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    file.rename(tmp_path / "elsewhere")
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda f: f.symlink_to(tmp_path / "elsewhere")}[manifest](file)
    with pytest.raises(ValueError, match=r"it has no model\.json|is a link to another file"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("genes", "ABC"),
        ("genes", [1, 2]),
        ("genes", ["A", "A"]),
        ("genes", []),
        ("genes", {"A": 1}),
        ("mpp", "0.5"),
        ("mpp", float("nan")),
        ("mpp", -1),
        ("seed", 0.5),
        ("id", 5),
        ("files", []),
        ("files", {NAME: 5}),
        ("sizes", {}),
        ("sizes", {NAME: "96"}),
        ("history", [1]),
        ("history", [{"loss": "low"}]),
        ("training_sections", "S1"),
        ("library_genes", "many"),
        ("config", [1]),
        ("encoder", "shufflenet"),
    ],
)
def test_entries_of_another_kind(tmp_path, entry, value):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", **{entry: value})
    with pytest.raises(ValueError, match=rf"the model in .*m is damaged: .*'({entry}|files)'"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, OverflowError, RecursionError, MemoryError, AssertionError]
)
def test_whatever_rebuilding_raises_is_laid_to_the_folder(tmp_path, error):
    Model(np.arange(3.0)).save(tmp_path / "m")

    def rebuild(content, tensors):
        raise error("what a hostile manifest led to")

    with pytest.raises(ValueError, match="is damaged: what a hostile manifest led to"):
        load_model(tmp_path / "m", method="hggep", rebuild=rebuild)
