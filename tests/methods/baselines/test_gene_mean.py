import numpy as np

from hggep_sc.methods.baselines import BaselineConfig, GeneMean
from hggep_sc.metrics import pearson


def test_mean_of_the_sections_means(opened, monkeypatch):
    """The closed form; a spot without counts is no spot, a large section counts as much as a small one."""
    monkeypatch.setattr("hggep_sc.encoders.weights._imagenet", lambda: 1 / 0)  # no weights are asked for
    opened[1] = opened[1].subset(np.arange(10))
    model = GeneMean.fit(opened[:2], BaselineConfig(), genes=15, progress=False)
    means = []
    for section in opened[:2]:
        expression = [
            np.log(1 + 1e4 * spot / library)
            for spot, library in zip(section.counts(model.genes).toarray(), section.library(), strict=True)
            if library > 0
        ]
        means.append(np.mean(expression, axis=0))
    predicted, latent = model.predict(opened[2])
    assert latent is None
    assert predicted.shape == (len(opened[2].xy), 15)
    np.testing.assert_allclose(predicted, np.broadcast_to(np.mean(means, axis=0), predicted.shape), rtol=1e-6)
    assert np.isnan(pearson(predicted, np.random.default_rng(0).normal(size=predicted.shape))).all()
