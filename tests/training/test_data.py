import errno
import io
import logging
import resource
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hggep_sc import settings
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.data import _reserve, array_store, section_data


class FakeSection:
    """Three predicted genes of a library of five."""

    genes = ("a", "b", "c")
    group = None

    def __init__(self, counts, xy=None, mpp=None, name="A"):
        self.table = np.asarray(counts, dtype=np.float32)
        self.xy = np.random.default_rng(0).random((len(self.table), 2)) if xy is None else np.asarray(xy, float)
        self.mpp, self.name = mpp, name

    def counts(self, genes):
        return sp.csr_matrix(self.table[:, ["abcde".index(gene) for gene in genes]])

    def library(self):
        return self.table.sum(1).astype(np.float64)


# --- patches on disk

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


# --- targets

COUNTS = [
    # predicted | others
    [1, 2, 3, 4, 0],
    [0, 0, 0, 9, 9],  # nothing in the predicted genes
    [0, 0, 0, 0, 0],  # nothing at all
    [5, 0, 0, 15, 0],
    [0, 7, 0, 0, 33],
]


def data_of(counts, scale):
    section = FakeSection(counts)
    n = len(section.xy)
    return section_data(section, section.genes, scale, np.zeros((n, 1, 3, 2, 2), np.uint8), section.xy)


@pytest.mark.parametrize(
    ("normalize", "seen", "totals"),
    [("library", [0, 1, 3, 4], [10, 18, 20, 40]), ("panel", [0, 3, 4], [6, 5, 7])],
)
def test_targets(normalize, seen, totals):
    """A spot teaches where its total is known: a zero in the panel of a counted library is an observation."""
    data = data_of(COUNTS, ExpressionScale(normalize, 100.0))
    seen = np.isin(np.arange(5), seen)
    np.testing.assert_array_equal(data.observed, seen)
    counts = np.array(COUNTS, float)[seen, :3]
    totals = np.array(totals, float)
    np.testing.assert_allclose(data.expression[seen], np.log1p(100 * counts / totals[:, None]), rtol=1e-6)
    np.testing.assert_allclose(data.size_factors[seen], totals / np.median(totals), rtol=1e-6)
    np.testing.assert_array_equal(data.counts, np.array(COUNTS)[:, :3])
    assert np.median(data.size_factors[data.observed]) == pytest.approx(1)
    assert np.isfinite(data.expression).all()
    assert np.isfinite(data.size_factors).all()
    assert {a.dtype for a in (data.expression, data.counts, data.size_factors, data.positions)} == {
        np.dtype(np.float32)
    }


def test_spots_without_counts_are_said(caplog):
    with caplog.at_level(logging.INFO, logger="hggep_sc"):
        data_of(COUNTS, ExpressionScale())
    assert "1 spots without counts" in caplog.text


def test_a_section_without_counts_is_refused():
    with pytest.raises(ValueError, match="section 'A': no spot has a count in the 3 genes"):
        data_of(np.pad(np.zeros((4, 3)), ((0, 0), (0, 2)), constant_values=5), ExpressionScale())


def test_integer_positions_stay_integers():
    section = FakeSection(COUNTS)
    grid = np.arange(10).reshape(5, 2)
    data = section_data(section, section.genes, ExpressionScale(), np.zeros((5, 1, 3, 2, 2), np.uint8), grid)
    assert data.positions.dtype == grid.dtype


@pytest.mark.parametrize("held", ["patches", "features"])
def test_batch_takes_the_spots_asked_for(held):
    data = data_of(COUNTS, ExpressionScale())
    if held == "features":
        data.seen = np.zeros((5, 8, 2, 3), np.float32)
    data.seen[:] = np.arange(5).reshape((5,) + (1,) * (data.seen.ndim - 1))
    spots = np.array([4, 0, 2])
    batch = data.batch(spots)
    seen, absent = (batch.patches, batch.features) if held == "patches" else (batch.features, batch.patches)
    assert absent is None
    assert data.holds_features == (held == "features")
    np.testing.assert_array_equal(seen.numpy(), data.seen[spots])
    assert seen.dtype == (torch.uint8 if held == "patches" else torch.float32)
    assert batch.observed.tolist() == [0, 1]
    for name in ("positions", "expression", "counts", "size_factors"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(data, name)[spots])
