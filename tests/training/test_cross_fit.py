import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from hggep_sc import Config
from hggep_sc.nn import HGGEPNetwork
from hggep_sc.prediction.chunks import chunks_with_halo
from hggep_sc.training.confidence import feature_statistics
from hggep_sc.training.cross_fit import HeldOut, Weights, predict_data
from hggep_sc.training.data import SectionData
from small_networks import data_for, small_network


def held_out(seed, n=30, n_genes=6, network=0.5, linear=2.0, with_linear=True):
    """A section whose expression is a weighed sum of both paths, and noise."""
    rng = np.random.default_rng(seed)
    paths = rng.normal(size=(2, n, n_genes))
    paths -= paths.mean(axis=1, keepdims=True)
    observed = 3 + network * paths[0] + linear * paths[1] + rng.normal(size=(n, n_genes))
    return HeldOut(observed, paths[0], paths[1] if with_linear else None, np.empty(0), np.empty(0))


def by_solver(parts):
    """Bounded least squares over all entries, those of a section weighed so that sections count alike."""
    rows, sides = [], []
    for part in parts:
        weight = 1 / np.sqrt(part.observed.size)
        linear = np.zeros_like(part.network) if part.linear is None else part.linear
        rows.append(weight * np.column_stack([part.network.ravel(), linear.ravel()]))
        sides.append(weight * (part.observed - part.observed.mean(axis=0)).ravel())
    return lsq_linear(np.concatenate(rows), np.concatenate(sides), bounds=(0, np.inf), tol=1e-14).x


@pytest.mark.parametrize(("network", "linear"), [(0.5, 2.0), (3.0, 0.0), (2.0, -1.5), (-1.0, 1.0)])
def test_weights_are_non_negative_least_squares(network, linear):
    parts = [held_out(seed, n, network=network, linear=linear) for seed, n in enumerate([20, 45, 80])]
    found = Weights.of(parts)
    np.testing.assert_allclose([found.network, found.linear], by_solver(parts), atol=1e-6)
    assert found.linear == 0 or linear > -1


def test_weight_of_the_network_alone():
    parts = [held_out(seed, with_linear=False) for seed in range(3)]
    found = Weights.of(parts)
    assert found.linear == 0
    np.testing.assert_allclose(found.network, by_solver(parts)[0], rtol=1e-6)


def test_sections_count_alike():
    """A section that is there twice in one piece weighs as much as once."""
    small, large = held_out(0, network=1.0), held_out(1, network=4.0)
    twice = HeldOut(
        *(np.concatenate([values, values]) for values in (large.observed, large.network, large.linear)), 0, 0
    )
    once, doubled = Weights.of([small, large]), Weights.of([small, twice])
    np.testing.assert_allclose([once.network, once.linear], [doubled.network, doubled.linear], rtol=1e-6)


def test_nothing_to_say():
    """Predictions that are constant, or point the wrong way, have no weights."""
    flat = held_out(0)
    zeros = np.zeros_like(flat.network)
    assert Weights.of([HeldOut(flat.observed, zeros, zeros, flat.counts, flat.totals)]) is None
    assert Weights.of([held_out(1, network=-2.0, linear=-2.0)]) is None
    assert Weights.of([]) is None


def test_mixture():
    part = held_out(3)
    weights = Weights(network=0.25, linear=4.0)
    np.testing.assert_allclose(part.mixed(weights), 0.25 * part.network + 4 * part.linear)


@pytest.mark.parametrize("chunk_spots", [20, 60])
def test_a_section_left_out_is_predicted_as_any_other(chunk_spots):
    """In the chunks of `tl.predict`, halo and all; here from features that are held."""
    torch.manual_seed(0)
    config = Config(width=16, vit_heads=2, chunk_spots=chunk_spots)
    network = HGGEPNetwork(config, 5, encoder=None, groups=(6,), n_fields=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.orthogonal_(network.basis)
    xy, seen = np.random.default_rng(0).random((60, 2)), torch.randn(60, 1, 6)
    empty = np.zeros((60, 5), dtype=np.float32)
    data = SectionData(
        "A", xy, seen.numpy(), xy.astype(np.float32), empty, empty, empty[:, 0], empty[:, 0], xy[:, 0] > 0
    )
    found = predict_data(network, data)
    for spots, core in chunks_with_halo(xy, np.ones(60, dtype=bool), chunk_spots):
        with torch.inference_mode():
            expected = network.decode(seen[spots], torch.from_numpy(xy[spots]).float()).expression
        np.testing.assert_allclose(found[spots[core]], expected.numpy()[core], atol=1e-5)
    assert found.std(axis=0).min() > 0.01


def test_statistics_are_of_observed_spots():
    """By the plain formula, sections counting alike; spots without counts have no part in it."""
    network, config = small_network("default")
    training = [data_for(network, config) for _ in range(2)]
    training[1].seen = 3 * training[1].seen[:7] + 1
    training[1].observed = training[1].observed[:7]
    of_sections = [data.seen[data.observed].astype(float) for data in training]
    expected_mean = np.mean([values.mean(axis=0) for values in of_sections], axis=0)
    expected_std = np.sqrt(np.mean([((values - expected_mean) ** 2).mean(axis=0) for values in of_sections], axis=0))
    mean, std = feature_statistics(network, training)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
    np.testing.assert_allclose(std, expected_std, rtol=1e-5)
