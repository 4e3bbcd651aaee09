import tracemalloc

import numpy as np
import pytest

import hggep_sc as hggep
from helpers import CPU, TINY
from hggep_sc import settings
from hggep_sc.features import moments
from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.store import Described, describe_section, use_once
from hggep_sc.prediction.linear import LinearFeatures, LinearPath, add_linear, linear_features
from hggep_sc.section import open_sections
from hggep_sc.training.data import SectionData
from hggep_sc.training.linear import fit_linear


def data(seed, n=40, n_features=5, n_genes=12):
    """A section whose expression is linear in two of its features, and noise; every fourth spot is not observed."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, n_features))
    features -= features.mean(axis=0)
    expression = 5 + features[:, :2] @ rng.normal(size=(2, n_genes)) + 0.1 * rng.normal(size=(n, n_genes))
    nothing = np.empty(0)
    observed = np.arange(n) % 4 > 0
    return SectionData(
        str(seed), rng.random((n, 2)), nothing, nothing, expression, nothing, nothing, nothing, observed, seen(features)
    )


def seen(features):
    return LinearFeatures(Described(features[:, None].astype(np.float32), None))


def test_closed_form():
    """Ridge regression of the principal components' scores, by the normal equations."""
    training, alpha = [data(0), data(1)], 2.5
    path = fit_linear(training, seed=0, alpha=alpha)
    X = np.concatenate([part.linear[part.observed] for part in training])
    Y = np.concatenate([(y := part.expression[part.observed]) - y.mean(axis=0) for part in training])
    _, _, components = np.linalg.svd(Y - Y.mean(axis=0), full_matrices=False)
    C = components[:8]
    expected = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ Y @ C.T) @ C
    new = data(2).linear
    np.testing.assert_allclose(path.predict(new), new[:] @ expected, atol=1e-4)


def test_penalty_is_chosen_on_what_is_left_out():
    """With clean sections the ridge needs little of it; with features that say nothing, much."""
    clean = fit_linear([data(0), data(0), data(0)], seed=0)
    noise = [data(seed) for seed in range(3)]
    for part in noise:
        part.linear = seen(np.random.default_rng(int(part.name) + 10).normal(size=(40, 5)))
    assert clean.alpha < fit_linear(noise, seed=0).alpha


def test_scaled():
    path, new = fit_linear([data(0), data(1)], seed=0, alpha=1.0), data(2).linear
    np.testing.assert_allclose(path.scaled(0.3).predict(new), 0.3 * path.predict(new), atol=1e-6)


def random_path(n_features, n_genes):
    rng = np.random.default_rng(1)
    values = (rng.normal(size=shape).astype(np.float32) for shape in [(n_features, 8), (8, n_genes)])
    return LinearPath(*values, 1.0)


@pytest.mark.parametrize("rows", [7, 4096])
@pytest.mark.parametrize("with_colours", [False, True])
def test_the_plain_formula(monkeypatch, with_colours, rows):
    """Standardised over all spots at once, in double precision."""
    monkeypatch.setattr(moments, "ROWS", rows)
    rng = np.random.default_rng(0)
    encoded = rng.normal(3, rng.uniform(0, 5, 6), size=(50, 6)).reshape(50, 2, 3).astype(np.float32)
    colours = rng.normal(-1, 0.1, size=(50, 2, 4)).astype(np.float32) if with_colours else None
    blocks = [encoded.reshape(50, 6)]
    if with_colours:
        blocks.insert(0, colours.reshape(50, 8))
    path = random_path(sum(block.shape[1] for block in blocks), 5)
    scaled = [
        (block - block.mean(0, dtype=float)) / block.std(0, dtype=float) / block[0].size ** 0.5 for block in blocks
    ]
    features = linear_features(Described(encoded, colours))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.hstack(scaled), atol=1e-6)
    expression = np.full((50, 5), 7, dtype=np.float32)
    add_linear(expression, path, Described(encoded, colours))
    np.testing.assert_allclose(expression, 7 + np.hstack(scaled) @ path.coefficients @ path.components, rtol=1e-5)


def test_features_of_colours_alone():
    colours = np.random.default_rng(0).normal(size=(50, 2, 4)).astype(np.float32)
    features = linear_features(Described(None, colours))
    np.testing.assert_allclose((features**2).sum(0), 50 / 8, rtol=1e-4)  # each column a part of a variance of 1


def test_features_of_all_spots_are_never_in_memory(tmp_path):
    n, n_features, n_genes = 40_000, 400, 10
    encoded = np.memmap(tmp_path / "features", dtype=np.float32, mode="w+", shape=(n, 1, n_features))
    rng = np.random.default_rng(0)
    for start in range(0, n, 1000):
        encoded[start : start + 1000] = rng.random((1000, 1, n_features), dtype=np.float32)
    expression, path = np.zeros((n, n_genes), dtype=np.float32), random_path(n_features, n_genes)
    tracemalloc.start()
    try:
        add_linear(expression, path, Described(encoded, None))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert expression.std() > 0
    assert peak < encoded.nbytes


class TestInAModel:
    @pytest.mark.parametrize("chunk_spots", [None, 16])
    def test_prediction_is_the_sum(self, sections, trained, chunk_spots):
        """The network's prediction, and what the path makes of features that are read anew."""
        (section,) = open_sections(sections["S3"])
        alone = hggep.HGGEP(
            trained.network, trained.config, trained.genes, mpp=trained.mpp, fingerprint=trained.fingerprint
        )
        both, network = (model.predict(section, device="cpu", chunk_spots=chunk_spots)[0] for model in (trained, alone))
        (anew,) = open_sections(sections["S3"])
        fields, device = fields_of_view(trained.config, trained.mpp, section.mpp), trained.network.gene_mean.device
        seen = linear_features(
            describe_section(anew, trained.encoder, fields, trained.config.patch_size, colours=True, device=device)
        )
        np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(both - network, trained.linear.predict(seen), atol=1e-5)
        assert np.abs(both - network).max() > 0

    @pytest.mark.parametrize("kept", ["nothing of the section", "nothing at all"])
    def test_prediction_needs_nothing_to_be_kept(self, sections, trained, kept, monkeypatch):
        """The image is read for the features and the colours beside them at once, and for the stain."""
        plain, section = (open_sections(sections["S3"])[0] for _ in range(2))
        expected, _ = trained.predict(plain, device="cpu", chunk_spots=16)
        if kept == "nothing at all":
            monkeypatch.setattr(settings, "feature_memory", 0)
        else:
            use_once([section])
        opener, opened = section.opener, []
        section.opener = lambda: opened.append(1) or opener()
        found, _ = trained.predict(section, device="cpu", chunk_spots=16)
        assert np.array_equal(found, expected)
        assert len(opened) == 2

    @pytest.mark.parametrize(
        "config", [{"linear": False}, {"cross_fit": False}, {"backbone_learning_rate": 1e-4}, {"gem": True}]
    )
    def test_absent(self, sections, config):
        model = hggep.tl.fit({"S1": sections["S1"]}, genes=5, config={**TINY, "epochs": 1, **config}, **CPU)
        assert model.linear is None
        assert "linear path" not in repr(model)
