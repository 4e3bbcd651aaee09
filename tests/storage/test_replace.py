import os
import signal
import subprocess
import sys

import pytest

from hggep_sc.storage.replace import replacing


def write(part, kind, content):
    if kind == "folder":
        part.mkdir()
        part = part / "inside"
    part.write_text(content)


def read(path):
    return (path / "inside" if path.is_dir() else path).read_text()


kinds = pytest.mark.parametrize("kind", ["file", "folder"])


@kinds
def test_takes_the_place_of_what_was_there(tmp_path, kind):
    path = tmp_path / "result"
    for content in ("first", "second"):
        with replacing(path) as part:
            write(part, kind, content)
        assert read(path) == content
    assert list(tmp_path.iterdir()) == [path]


@kinds
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left on device")])
def test_a_failure_leaves_what_was_there(tmp_path, kind, error):
    path = tmp_path / "result"
    with replacing(path) as part:
        write(part, kind, "first")
    with pytest.raises(type(error)) as raised, replacing(path) as part:  # noqa: PT012 - the failing is in the writing
        write(part, kind, "half")
        raise error
    assert read(path) == "first"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path} could not be written, and is as it was before: no space left on device"


@kinds
def test_a_kill_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "result"
    with replacing(path) as part:
        write(part, kind, "first")
    script = f"""
import os, signal
from pathlib import Path
from hggep_sc.storage.replace import replacing
with replacing(Path({str(path)!r})) as part:
    {"part.mkdir(); part = part / 'inside'" if kind == "folder" else ""}
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(path) == "first"
    with replacing(path) as part:  # what is left beside it is in nobody's way
        write(part, kind, "second")
    assert read(path) == "second"
    assert list(tmp_path.iterdir()) == [path]


@kinds
def test_what_cannot_be_put_in_its_place_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "result"
    with replacing(path) as part:
        write(part, kind, "first")
    with pytest.raises(OSError, match="is as it was before"), replacing(path):
        pass  # nothing is written
    assert read(path) == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["result.old", "result.part", ".result.part"])
@kinds
def test_what_is_called_alike_is_the_users(tmp_path, kind, name):
    write(tmp_path / name, kind, "mine")
    for content in ("first", "second"):
        with replacing(tmp_path / "result") as part:
            write(part, kind, content)
    assert read(tmp_path / name) == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {name, "result"}


@kinds
def test_of_two_that_write_at_once_each_writes_its_own(tmp_path, kind):
    """The last to end is kept, whole; what the other is at work on is left alone."""
    path = tmp_path / "result"
    with replacing(path) as first:
        write(first, kind, "first")
        with replacing(path) as second:
            assert first != second
            write(second, kind, "second")
        assert read(path) == "second"
        assert first.exists()
    assert read(path) == "first"
    assert list(tmp_path.iterdir()) == [path]


def killed(path, while_):
    """Kill a process that puts a folder in the place of another; return its number."""
    script = f"""
import os, signal
from pathlib import Path
from hggep_sc.storage.replace import replacing
real = Path.replace
def replace(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
if {while_!r} == "moving":
    Path.replace = replace
with replacing(Path({str(path)!r})) as part:
    part.mkdir()
    if {while_!r} == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    (part / "inside").write_text("second")
"""
    with subprocess.Popen([sys.executable, "-c", script], env=os.environ) as process:
        assert process.wait() == -signal.SIGKILL
    return process.pid


def test_a_folder_that_a_killed_process_had_moved_away_comes_back(tmp_path):
    path = tmp_path / "result"
    write(path, "folder", "first")
    killed(path, "moving")
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path):  # noqa: PT012 - what fails is the writing
        assert read(path) == "first"
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == [path]
    assert read(path) == "first"


def test_what_a_living_process_or_another_machine_left_is_not_removed(tmp_path, monkeypatch):
    path = tmp_path / "result"
    number = killed(path, "writing")
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("psutil.pid_exists", lambda pid: pid == number)
    with replacing(path) as part:
        part.write_text("x")
    assert left.exists()
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        with replacing(path) as part:
            part.write_text("x")
    assert left.exists()
    with replacing(path) as part:
        part.write_text("x")
    assert not left.exists()


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "result").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path / "result") as part:
        write(part, "folder", "new")
    assert read(tmp_path / "result") == "new"
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


def test_long_names_have_room(tmp_path):
    path = tmp_path / ("x" * 250)
    with replacing(path) as part:
        part.write_text("x")
    assert path.read_text() == "x"
