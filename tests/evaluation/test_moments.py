import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr

from hggep_sc.evaluation.moments import correlations, section_moments
from hggep_sc.section import open_sections
from hggep_sc.section.expression import ExpressionScale

GENES = ["CYC01", "CYC02", "CYC03"]
SQUARE = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2) * 200.0
HEXAGONAL = SQUARE * (1, 0.75**0.5) + np.where(SQUARE[:, 1:] % 400 == 200, 100.0, 0.0) * (1, 0)


@pytest.fixture
def opened(sections):
    """Three sections; the first spot of S1 has no counts, and predictions that have something to do with the counts."""
    sections["S1"].X = sp.diags(np.arange(40) > 0, dtype=np.float32) @ sections["S1"].X
    return open_sections(sections)


def predictions(sections, scale):
    rng = np.random.default_rng(0)
    return [
        scale.transform(s.counts(GENES), s.library())
        + ((3 * k + rng.normal(size=(len(s.xy), 3))) / scale.log_unit).astype(np.float32)
        for k, s in enumerate(sections)
    ]


def observed(section):
    seen = section.library() > 0
    return np.log1p(1e4 * section.counts(GENES).toarray()[seen] / section.library()[seen, None]), seen


@pytest.mark.parametrize("log_base", ["e", "10"])
def test_correlations_of_sections_and_of_all_their_spots_are_scipys(opened, log_base):
    scale = ExpressionScale(log_base=log_base)
    predicted = predictions(opened, scale)
    moments = pd.concat(
        section_moments(section, values, GENES, scale).reset_index().assign(section=section.name, fold="one")
        for section, values in zip(opened, predicted, strict=True)
    )
    by_section = correlations(moments, ["section", "gene"], "observed")
    pooled = correlations(moments, ["fold", "gene"], "observed")
    everything = [(values[observed(s)[1]], observed(s)[0]) for s, values in zip(opened, predicted, strict=True)]
    assert len(everything[0][0]) == 39
    for j, gene in enumerate(GENES):
        for section, (p, o) in zip(opened, everything, strict=True):
            assert by_section[section.name, gene] == pytest.approx(pearsonr(p[:, j], o[:, j])[0], abs=1e-6)
        p, o = (np.concatenate([pair[k][:, j] for pair in everything]) for k in (0, 1))
        assert pooled["one", gene] == pytest.approx(pearsonr(p, o)[0], abs=1e-6)
    # the levels of the predictions differ between sections, those of the counts do not
    assert all(pooled["one", gene] < by_section.xs(gene, level="gene").min() for gene in GENES)


@pytest.mark.parametrize(("places", "most"), [(SQUARE, 9), (HEXAGONAL, 7)], ids=["square", "hexagonal"])
def test_a_smoothed_target_is_the_mean_over_the_spot_and_its_neighbours(opened, places, most):
    section = opened[1]
    section.xy = places[::-1] + 1000
    predicted = predictions([section], ExpressionScale())[0]
    moments = section_moments(section, predicted, GENES, ExpressionScale())
    target, _ = observed(section)
    apart = np.linalg.norm(section.xy[:, None] - section.xy[None], axis=-1)
    near = apart < 290  # the diagonal of a square is 283, the second neighbours of a hexagonal grid are 346 away
    assert near.sum(axis=1).max() == most
    smoothed = np.stack([target[neighbours].mean(axis=0) for neighbours in near])
    r = correlations(moments.reset_index(), ["gene"], "smoothed")
    for j, gene in enumerate(GENES):
        assert r[gene] == pytest.approx(pearsonr(predicted[:, j], smoothed[:, j])[0], abs=1e-6)


def test_constant_predictions_have_no_correlation_also_over_sections(opened):
    scale = ExpressionScale()
    constant = np.float32([0.1, 1 / 3, 7.7])
    moments = pd.concat(
        section_moments(s, np.tile(constant, (len(s.xy), 1)), GENES, scale).reset_index() for s in opened
    )
    assert correlations(moments, ["gene"], "observed").isna().all()
    assert correlations(moments.iloc[:3], ["gene"], "smoothed").isna().all()


def test_genes_are_worked_on_some_at_a_time(opened, monkeypatch):
    predicted = predictions(opened[:1], ExpressionScale())[0]
    whole = section_moments(opened[0], predicted, GENES, ExpressionScale())
    monkeypatch.setattr("hggep_sc.evaluation.moments.BLOCK", 40)
    pd.testing.assert_frame_equal(section_moments(opened[0], predicted, GENES, ExpressionScale()), whole)
