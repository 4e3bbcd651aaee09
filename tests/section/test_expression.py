import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from hggep_sc.section.expression import ExpressionScale

pytestmark = pytest.mark.filterwarnings("ignore:Some cells have zero counts")

PANEL = [7, 0, 3, 11]


@pytest.fixture
def counts():
    counts = np.random.default_rng(0).poisson(2.0, (30, 20)).astype(np.float32)
    counts[4] = 0  # nothing at all
    counts[9, PANEL] = 0  # nothing in the panel
    return counts


def scaled(counts, scale):
    panel = sp.csr_matrix(counts[:, PANEL])
    return scale.transform(panel, scale.totals(panel, counts.sum(1)))


def scanpys(counts, target_sum, base=None):
    adata = AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=target_sum)
    sc.pp.log1p(adata, base=base)
    return adata.X


@pytest.mark.parametrize("target_sum", [1e4, 1e6])
def test_library_against_scanpy(counts, target_sum):
    found = scaled(counts, ExpressionScale("library", target_sum))
    np.testing.assert_allclose(found, scanpys(counts, target_sum)[:, PANEL], rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("target_sum", [1e4, 1e6])
def test_panel_against_scanpy(counts, target_sum):
    found = scaled(counts, ExpressionScale("panel", target_sum))
    np.testing.assert_allclose(found, scanpys(counts[:, PANEL], target_sum), rtol=1e-5)
    assert not np.allclose(found, scaled(counts, ExpressionScale("library", target_sum)))


def test_log10(counts):
    scale = ExpressionScale("panel", 1e4, "10")
    found = scaled(counts, scale)
    np.testing.assert_allclose(found, scanpys(counts[:, PANEL], 1e4, base=10), rtol=1e-5)
    np.testing.assert_allclose(found * scale.log_unit, scaled(counts, ExpressionScale("panel")), rtol=1e-5)
    assert ExpressionScale().log_unit == 1.0


@pytest.mark.parametrize("normalize", ["library", "panel"])
def test_spots_without_counts_are_zero(counts, normalize):
    found = scaled(counts, ExpressionScale(normalize))
    assert (found[[4, 9]] == 0).all()
    assert np.isfinite(found).all()
    assert (found[10] > 0).any()


def test_totals(counts):
    panel = sp.csr_matrix(counts[:, PANEL])
    np.testing.assert_array_equal(ExpressionScale("library").totals(panel, counts.sum(1)), counts.sum(1))
    np.testing.assert_array_equal(ExpressionScale("panel").totals(panel, counts.sum(1)), counts[:, PANEL].sum(1))


def test_counts_are_left_as_they_were(counts):
    panel = sp.csr_matrix(counts[:, PANEL])
    before = panel.toarray()
    ExpressionScale().transform(panel, counts.sum(1).astype(float))
    np.testing.assert_array_equal(panel.toarray(), before)


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (ExpressionScale(), "ln(1 + 10000 * counts / library total)"),
        (ExpressionScale("panel", 1e6, "10"), "log10(1 + 1e+06 * counts / panel total)"),
    ],
)
def test_text(scale, text):
    assert str(scale) == text
