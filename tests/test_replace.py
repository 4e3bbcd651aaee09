import os
import signal
import subprocess
import sys

import pytest

from hggep_sc._replace import replacing


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
from hggep_sc._replace import replacing
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
