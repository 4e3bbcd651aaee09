import logging

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.data import section_data


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
        data.seen = np.zeros((5, 2, 3), np.float32)
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
