"""The low-rank ridge on real sections, each predicted from the other four."""

import numpy as np
import pytest

import hggep_sc as hggep
from hggep_sc.methods.baselines import BaselineConfig, LowRankRidge, base
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections


@pytest.fixture
def features_computed_once(monkeypatch):
    """They depend on the image alone; the five sections' scales differ by less than is resampled for."""
    known, compute = {}, base.describe_section

    def once(section, *given, **settings):
        if section.name not in known:
            known[section.name] = compute(section, *given, **settings)
        return known[section.name]

    monkeypatch.setattr(base, "describe_section", once)


@pytest.mark.slow
@pytest.mark.usefixtures("features_computed_once")
def test_low_rank_ridge_reaches_its_figure(shared, monkeypatch):
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    sections = open_sections(hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"]))
    panel = (shared / "reference" / "her2st_785_genes.txt").read_text().split()
    weights = shared / "weights" / "shufflenetv2_x0_5_trunk.pth"
    figures = {}
    for test in sections:
        training = [section for section in sections if section is not test]
        config = BaselineConfig(normalize="panel")
        model = LowRankRidge.fit(training, config, genes=panel, weights=weights, device="cpu", progress=False)
        predicted, _ = model.predict(test, device="cpu")
        counts = test.counts(panel).toarray()
        seen = counts.sum(1) > 0
        observed = np.log1p(1e4 * counts[seen] / counts[seen].sum(1, keepdims=True))
        figures[test.name] = np.nanmean(pearson(predicted[seen], observed))
    assert np.mean(list(figures.values())) >= 0.23, figures
    assert min(figures.values()) >= 0.20, figures
