"""Paths that are no readable file, told apart before they are opened."""

import os
import socket

import pytest

from hggep_sc.storage.paths import require_file, why_absent


def test_a_file_passes(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"a")
    (tmp_path / "link").symlink_to(file)
    for path in (file, str(file), tmp_path / "link"):
        require_file(path, "file")
        assert why_absent(path) is None


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("gone.svs", "does not exist: correct the path"),
        ("https://example.org/a.svs", "is an address.*download it"),
        ("s3://bucket/a.zarr", "is an address.*download it"),
        ("file:///data/a.svs", "is an address.*give the path"),
        ("x" * 300, "cannot be reached.*long"),
        ("zero\0byte", "cannot be reached"),
    ],
)
def test_nothing_there(path, match):
    with pytest.raises(FileNotFoundError, match=f"(?s)weights file .*{match}"):
        require_file(path, "weights file")


def test_broken_links_and_loops(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "gone.svs")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileNotFoundError, match=r"broken is a link to .*gone\.svs, which does not exist"):
        require_file(tmp_path / "broken", "file")
    with pytest.raises(FileNotFoundError, match="loop cannot be reached"):
        require_file(tmp_path / "loop", "file")


def test_other_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for path, kind in (("pipe", "a named pipe"), ("socket", "a socket"), ("/dev/zero", "a device")):
            with pytest.raises(ValueError, match=f"{path} is {kind}, not a file: save"):
                require_file(path, "file")
    with pytest.raises(ValueError, match="is a folder: give a file in it"):
        require_file(tmp_path, "file")


def test_empty_and_forbidden(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.touch()
    with pytest.raises(ValueError, match="is empty: copy or download it again"):
        require_file(file, "file")
    file.write_bytes(b"a")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # as root, all is allowed
    with pytest.raises(ValueError, match=r"must not be read by this user.*chmod"):
        require_file(file, "file")
