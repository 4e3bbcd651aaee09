import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from hggep_sc.storage.lock import alone_in

NAME = "checkpoint_dir='run'"


def hold(folder, says):
    """Hold a folder until the process is killed."""
    with alone_in(folder, "lock", NAME):
        says.send("held")
        signal.pause()


def test_another_process_is_refused_until_this_one_is_killed(tmp_path):
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    other = spawn.Process(target=hold, args=(tmp_path / "new" / "run", there))
    other.start()
    try:
        assert here.recv() == "held"
        with (
            pytest.raises(ValueError, match=rf"{NAME}: another process or thread is at work on it; wait for its end"),
            alone_in(tmp_path / "new" / "run", "lock", NAME),
        ):
            pytest.fail("two at once")
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with alone_in(tmp_path / "new" / "run", "lock", NAME):
        pass


def test_another_thread_is_refused(tmp_path):
    def held():
        with alone_in(tmp_path, "lock", NAME):
            pass

    with ThreadPoolExecutor(1) as other:
        with alone_in(tmp_path, "lock", NAME), pytest.raises(ValueError, match="another process or thread"):
            other.submit(held).result()
        other.submit(held).result()


def test_an_error_lets_go(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="training failed"), alone_in(tmp_path, "lock", NAME):
            raise RuntimeError("training failed")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=rf"{NAME} cannot be written to: .*; choose another folder"),
        alone_in(tmp_path / "file" / "run", "lock", NAME),
    ):
        pytest.fail("there is no such folder")


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), NotImplementedError("no locks here")])
def test_a_folder_that_cannot_be_locked_is_named(tmp_path, monkeypatch, error):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with (
        pytest.raises(OSError, match=rf"{NAME} cannot be written to: .*{error.args[-1]}; choose another folder"),
        alone_in(tmp_path, "lock", NAME),
    ):
        pytest.fail("it is not held")


def test_what_lies_in_the_folder_stays(tmp_path: Path):
    for name in ("lock", "mine"):
        (tmp_path / name).write_text(name)
    with alone_in(tmp_path, "lock", NAME):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
