import errno
import gc
import io
import logging
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hggep_sc import settings
from hggep_sc.storage import arrays as module
from hggep_sc.storage.arrays import large_array, let_go

SHAPE = (5, 2, 3, 4, 4)
BYTES = 5 * 2 * 3 * 4 * 4


@pytest.fixture(autouse=True)
def _nothing_else_is_held(monkeypatch):
    """Of arrays that other tests have left, for instance in caches."""
    monkeypatch.setattr(module, "_held", module._Held())


def in_memory(array):
    return not isinstance(array, np.memmap)


def test_patches_in_memory(monkeypatch):
    monkeypatch.setattr(settings, "patch_memory", BYTES)
    array = large_array(SHAPE, np.uint8)
    assert array.shape == SHAPE
    assert array.dtype == np.uint8
    assert in_memory(array)


def test_features_count_by_their_bytes(monkeypatch):
    """A float takes four times a pixel's memory."""
    monkeypatch.setattr(settings, "patch_memory", 4 * BYTES)
    assert in_memory(large_array(SHAPE, np.float32))
    monkeypatch.setattr(settings, "patch_memory", 4 * BYTES - 1)
    array = large_array(SHAPE, np.float32)
    assert not in_memory(array)
    assert array.shape == SHAPE
    assert array.dtype == np.float32


def test_all_that_are_alive_share_the_memory(monkeypatch):
    monkeypatch.setattr(settings, "patch_memory", 3 * BYTES)
    arrays = [large_array(SHAPE, np.uint8) for _ in range(5)]
    assert [in_memory(array) for array in arrays] == [True, True, True, False, False]


def test_memory_is_given_back_when_nobody_refers_to_an_array(monkeypatch):
    """Part of it is enough to keep it."""
    monkeypatch.setattr(settings, "patch_memory", BYTES)
    array = large_array(SHAPE, np.uint8)
    part = array[2:, 0]
    del array
    gc.collect()
    assert not in_memory(large_array(SHAPE, np.uint8))
    del part
    gc.collect()
    assert in_memory(large_array(SHAPE, np.uint8))


def test_threads_take_no_more_than_there_is(monkeypatch):
    monkeypatch.setattr(settings, "patch_memory", 10 * BYTES)
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda _: large_array(SHAPE, np.uint8), range(40)))
    assert sum(map(in_memory, arrays)) == 10


def test_what_memory_does_not_hold_is_on_disk(monkeypatch, tmp_path, caplog):
    """In a file without a name; what is written comes back."""
    monkeypatch.setattr(settings, "patch_memory", BYTES - 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.INFO, logger="hggep_sc"):
        arrays = [large_array(SHAPE, np.uint8) for _ in range(2)]
    assert "temporary file" in caplog.text
    for value, array in enumerate(arrays, start=3):
        array[:] = value
    assert [int(array.sum()) for array in arrays] == [3 * BYTES, 4 * BYTES]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_leaves_nothing_behind(tmp_path):
    script = f"""
import os, signal, tempfile
import numpy as np
from hggep_sc import settings
from hggep_sc.storage.arrays import large_array
tempfile.tempdir = {str(tmp_path)!r}
settings.patch_memory = 0
large_array((1000,), np.float32)[:] = 1
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.iterdir()) == []


def test_arrays_on_disk_have_their_room(monkeypatch):
    """By the count of the file system, before anything is written."""
    monkeypatch.setattr(settings, "patch_memory", 0)
    found, reserve = [], module._reserve

    def noted(file, size):
        reserve(file, size)
        found.append(os.fstat(file.fileno()))

    monkeypatch.setattr(module, "_reserve", noted)
    array = large_array((3, 2**18), np.float32)
    assert array.shape == (3, 2**18)
    assert found[0].st_size == array.nbytes
    assert found[0].st_blocks * 512 >= array.nbytes


def mapped_bytes():
    """What mapped files take of this process's memory, by the kernel's count."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem")) * 1024


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[:, 0], lambda a: a.reshape(len(a), -1)])
def test_an_array_on_disk_takes_no_memory_when_let_go(monkeypatch, view):
    monkeypatch.setattr(settings, "patch_memory", 0)
    array = large_array((2**14, 1, 2**10), np.float32)  # 64 MiB
    before = mapped_bytes()
    array[:] = np.arange(2**14, dtype=np.float32)[:, None, None]
    assert mapped_bytes() - before > 2**25
    let_go(view(array))
    assert mapped_bytes() - before < 2**20
    np.testing.assert_array_equal(array, np.arange(2**14)[:, None, None] * np.ones((1, 1, 2**10)))


def test_what_is_in_memory_stays_when_let_go(monkeypatch):
    monkeypatch.setattr(settings, "patch_memory", 0)
    on_disk = large_array(SHAPE, np.float32)
    on_disk[:] = 2
    for array in (np.full(SHAPE, 2), on_disk[np.array([0, 1])], on_disk.mean(axis=1)):
        let_go(array)
        assert (array == 2).all()


@pytest.mark.parametrize("size", [5, 2**24, 2**24 + 5])
def test_room_is_written_where_the_system_cannot_reserve_it(monkeypatch, size):
    monkeypatch.delattr("os.posix_fallocate")
    file = io.BytesIO()
    module._reserve(file, size)
    assert file.getvalue() == bytes(size)


def test_no_room_names_the_folder(monkeypatch, tmp_path):
    """In a process that may write no file above 2 GiB."""
    monkeypatch.setattr(settings, "patch_memory", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**31, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            large_array((5 * 2**30,), np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    for part in ("take 5.0 GiB", str(tmp_path), "TMPDIR", "settings.patch_memory"):
        assert part in str(raised.value)
    assert list(tmp_path.iterdir()) == []
