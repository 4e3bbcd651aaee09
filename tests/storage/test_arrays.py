import errno
import io
import logging
import resource
from pathlib import Path

import numpy as np
import pytest

from hggep_sc import settings
from hggep_sc.storage.arrays import _reserve, array_store

SHAPES = [(5, 2, 3, 4, 4), (3, 2, 3, 4, 4)]
BYTES = 8 * 2 * 3 * 4 * 4


def test_patches_in_memory(monkeypatch):
    monkeypatch.setattr(settings, "patch_memory", BYTES)
    with array_store(SHAPES, np.uint8) as stores:
        assert [store.shape for store in stores] == SHAPES
        assert all(store.dtype == np.uint8 for store in stores)
        assert not any(isinstance(store, np.memmap) for store in stores)


def test_features_count_by_their_bytes(monkeypatch):
    """A float takes four times a pixel's memory."""
    monkeypatch.setattr(settings, "patch_memory", 4 * BYTES)
    with array_store(SHAPES, np.float32) as stores:
        assert all(type(store) is np.ndarray and store.dtype == np.float32 for store in stores)
    monkeypatch.setattr(settings, "patch_memory", 4 * BYTES - 1)
    with array_store(SHAPES, np.float32) as stores:
        assert all(isinstance(store, np.memmap) and store.dtype == np.float32 for store in stores)
        assert [store.shape for store in stores] == SHAPES


@pytest.mark.parametrize("fails", [False, True])
def test_patches_above_the_limit_are_on_disk(monkeypatch, tmp_path, caplog, fails):
    monkeypatch.setattr(settings, "patch_memory", BYTES - 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def use():
        with array_store(SHAPES, np.uint8) as stores:
            files = [Path(store.filename) for store in stores]
            assert all(isinstance(store, np.memmap) and store.dtype == np.uint8 for store in stores)
            assert [store.shape for store in stores] == SHAPES
            assert [file.stat().st_size for file in files] == [5 * 96, 3 * 96]
            assert all(tmp_path in file.parents for file in files)
            stores[0][:], stores[1][:] = 3, 4
            assert stores[0].sum() == 3 * 480
            if fails:
                raise RuntimeError("training went wrong")

    with caplog.at_level(logging.INFO, logger="hggep_sc"):
        if fails:
            with pytest.raises(RuntimeError, match="went wrong"):
                use()
        else:
            use()
    assert "temporary file" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_arrays_on_disk_have_their_room(monkeypatch):
    """By the count of the file system, before anything is written."""
    monkeypatch.setattr(settings, "patch_memory", 0)
    with array_store([(2**20,), (3, 2**18)], np.float32) as stores:
        for store in stores:
            found = Path(store.filename).stat()
            assert found.st_size == store.nbytes
            assert found.st_blocks * 512 >= store.nbytes
        assert stores[1].shape == (3, 2**18)


@pytest.mark.parametrize("size", [5, 2**24, 2**24 + 5])
def test_room_is_written_where_the_system_cannot_reserve_it(monkeypatch, size):
    monkeypatch.delattr("os.posix_fallocate")
    file = io.BytesIO()
    _reserve(file, size)
    assert file.getvalue() == bytes(size)


def test_no_room_names_the_folder_and_leaves_it_empty(monkeypatch, tmp_path):
    """In a process that may write no file above 2 GiB."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**31, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised, array_store([(9,), (5 * 2**30,)], np.uint8):
            pytest.fail("there was room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    for part in ("take 5.0 GiB", str(tmp_path), "TMPDIR", "settings.patch_memory"):
        assert part in str(raised.value)
    assert list(tmp_path.iterdir()) == []
