"""Models on the hub, in the layout of its cache: files of a snapshot are links to blobs."""

import logging

import pytest

import hggep_sc as hggep
from hggep_sc.errors import DownloadError, MissingPackageError, ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(trained, tmp_path):
    repository = tmp_path / "hub" / "models--lab--her2"
    trained.save(tmp_path / "model")
    (repository / "blobs").mkdir(parents=True)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "model").iterdir())):
        file.rename(repository / "blobs" / f"{number}")
        (folder / file.name).symlink_to(f"../../blobs/{number}")
    return folder


@pytest.fixture
def hub(snapshot, monkeypatch):
    """What it was asked for."""
    asked = []

    def download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if repository != "lab/her2":
            raise OSError("404: no such repository\nmore lines")
        assert any(pattern == "model.json" for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_snapshot_is_loaded_as_it_lies(snapshot, trained):
    assert hggep.HGGEP.load(snapshot).id == trained.id


def test_by_its_name_and_commit(hub, trained, caplog):
    caplog.set_level(logging.INFO, logger="hggep_sc")
    assert hggep.methods.load("hf://lab/her2").id == trained.id
    assert f"load hf://lab/her2@{COMMIT}" in caplog.text
    assert hggep.HGGEP.load(f"hf://lab/her2@{COMMIT}").id == trained.id
    assert hub == [("lab/her2", None), ("lab/her2", COMMIT)]


def test_what_cannot_be_had_is_named(hub, monkeypatch):
    with pytest.raises(DownloadError, match=r"hf://lab/other cannot be had: 404: no such repository\. `hf download"):
        hggep.methods.load("hf://lab/other")
    for wrong in ("hf://lab", "hf://lab/her2/more", "hf://lab/her2@"):
        with pytest.raises(ValueError, match="must be hf://owner/name"):
            hggep.methods.load(wrong)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r'"hggep-sc\[hub\]"'):
        hggep.methods.load("hf://lab/her2")


def test_a_link_to_elsewhere_is_not_followed(snapshot, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((snapshot / "model.json").read_bytes())
    (snapshot / "model.json").unlink()
    (snapshot / "model.json").symlink_to(elsewhere)
    with pytest.raises((ModelError, ValueError), match="is a link to another file"):
        hggep.HGGEP.load(snapshot)
