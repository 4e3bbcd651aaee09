import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hggep_sc.nn import hypergraph
from hggep_sc.nn.hypergraph import HAM, nearest_hyperedges


def distances(points):
    """Equations 13 and 14."""
    points = np.asarray(points, dtype=np.float64)
    out = np.zeros((len(points), len(points)))
    for i, j in np.ndindex(*out.shape):
        out[i, j] = np.sqrt(((points[i] - points[j]) ** 2).sum())
    return out


def normalised(distance):
    means = distance.mean(1, keepdims=True)
    return np.divide(distance, means, out=np.zeros_like(distance), where=means > 0)


def expected_edges(features, positions, k):
    """Equation 15 on whole matrices: the members of each node's hyperedge."""
    inc = normalised(distances(features)) + normalised(distances(positions))
    edges = []
    for i, row in enumerate(inc):
        others = sorted((j for j in range(len(inc)) if j != i), key=lambda j: row[j])
        edges.append({i, *others[:k]})
    return edges


def members(incidence, n):
    """Sets of spots by hyperedge; a spot is in a hyperedge once at most."""
    spots, edges = incidence.numpy()
    assert len(set(zip(spots, edges, strict=True))) == len(spots)
    found = [set(spots[edges == e].tolist()) for e in range(n)]
    assert sum(map(len, found)) == len(spots)
    return found


def convolution(x, edges, conv):
    """Equation 16: D^-1 H B^-1 H^T X W."""
    weight, bias = (a.detach().double().numpy() for a in (conv.lin.weight, conv.bias))
    h = np.zeros((len(x), len(edges)))
    for e, spots in enumerate(edges):
        h[list(spots), e] = 1
    d, b = np.diag(h.sum(1)), np.diag(h.sum(0))
    return np.linalg.inv(d) @ h @ np.linalg.inv(b) @ h.T @ x @ weight.T + bias


@pytest.fixture
def section():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 16, generator=generator), 500 * torch.rand(60, 2, generator=generator)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_equations_13_to_15(section, k):
    features, positions = section
    assert members(nearest_hyperedges(features, positions, k), 60) == expected_edges(features, positions, k)


def test_both_distances_count(section):
    features, positions = section
    near = nearest_hyperedges(features, torch.zeros(60, 2), 3)
    alike = nearest_hyperedges(torch.zeros(60, 16), positions, 3)
    both = nearest_hyperedges(features, positions, 3)
    assert not torch.equal(near, both)
    assert not torch.equal(alike, both)


def test_the_unit_of_either_distance_does_not_matter(section):
    features, positions = section
    edges = members(nearest_hyperedges(features, positions, 3), 60)
    assert members(nearest_hyperedges(7.0 * features, 0.01 * positions, 3), 60) == edges


def test_equation_16(section):
    features, positions = section
    torch.manual_seed(0)
    ham = HAM(16, n_neighbors=3, dropout=0.5).eval()
    torch.nn.init.normal_(ham.conv1.bias)
    torch.nn.init.normal_(ham.conv2.bias)
    edges = expected_edges(features, positions, 3)
    x = convolution(features.double().numpy(), edges, ham.conv1)
    assert x.shape == (60, 8)
    x = np.maximum(x, 0)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + ham.norm[1].eps)
    x = convolution(x, edges, ham.conv2)
    np.testing.assert_allclose(ham(features, positions).detach().numpy(), x, atol=1e-5)


@pytest.mark.parametrize("rows", [0.5, 1, 7, 59, 60, 61])
def test_blocks_equal_the_whole(section, monkeypatch, rows):
    whole = nearest_hyperedges(*section, 3)
    monkeypatch.setattr(hypergraph, "BLOCK", int(60 * rows))
    assert torch.equal(nearest_hyperedges(*section, 3), whole)


@pytest.fixture(scope="module")
def plain():
    path = Path(__file__).parents[2] / "benchmarks" / "plain_hypergraph.py"
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "6b32744c62ec458b"  # frozen
    spec = importlib.util.spec_from_file_location("plain_hypergraph", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [180, 1000])
def test_blocks_equal_a_loop_over_spots(plain, monkeypatch, n):
    generator = torch.Generator().manual_seed(n)
    features, positions = torch.randn(n, 128, generator=generator), 4000 * torch.rand(n, 2, generator=generator)
    monkeypatch.setattr(hypergraph, "BLOCK", 50 * n)
    found = members(nearest_hyperedges(features, positions, 6), n)
    assert found == plain.nearest_hyperedges(features.numpy(), positions.numpy(), 6)


def test_ties(plain, monkeypatch):
    """On an array several spots are equally near: which are taken does not depend on the blocks."""
    positions = torch.cartesian_prod(torch.arange(20.0), torch.arange(15.0))
    features = torch.ones(300, 16)
    whole = nearest_hyperedges(features, positions, 6)
    monkeypatch.setattr(hypergraph, "BLOCK", 300 * 7)
    assert torch.equal(nearest_hyperedges(features, positions, 6), whole)
    for spot, found in enumerate(members(whole, 300)):
        incidence = plain.incidence_row(spot, features.numpy(), positions.numpy())
        nearest = incidence[plain.hyperedge(spot, features.numpy(), positions.numpy(), 6)]
        np.testing.assert_allclose(np.sort(incidence[list(found)]), np.sort(nearest), atol=1e-12)


def check(features, positions, k=3):
    """Every hyperedge holds its own spot and k others (all, where there are fewer), and HAM stays finite."""
    n = len(features)
    edges = members(nearest_hyperedges(features, positions, k), n)
    assert all(i in spots for i, spots in enumerate(edges))
    assert {len(spots) for spots in edges} == {min(k + 1, n)}
    torch.manual_seed(0)
    ham = HAM(features.shape[1], k, dropout=0.0)
    h = features.clone().requires_grad_()
    out = ham(h, positions)
    assert out.shape == features.shape
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.isfinite(h.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in ham.parameters())
    return edges


def test_isolated_spot(section):
    features, positions = section
    positions[5] = torch.tensor([1e7, -1e7])
    assert check(features, positions) == expected_edges(features, positions, 3)


def test_duplicate_spots(section):
    features, positions = section
    features[10:20], positions[10:20] = features[10].clone(), positions[10].clone()
    edges = check(features, positions)
    assert all(edges[i] <= set(range(10, 20)) for i in range(10, 20))


def test_equal_features_leave_the_positions(section):
    features, positions = section
    equal = features[:1].expand(60, -1)
    assert check(equal, positions) == expected_edges(np.zeros((60, 1)), positions, 3)


def test_equal_positions_leave_the_features(section):
    features, _ = section
    assert check(features, torch.full((60, 2), 3.0)) == expected_edges(features, np.zeros((60, 1)), 3)


def test_everything_equal():
    check(torch.ones(40, 16), torch.ones(40, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_spots(section, n):
    features, positions = section
    edges = check(features[:n], positions[:n])
    assert edges == [set(range(n))] * n


def test_large_coordinates_are_exact():
    # 30 x 30 spots near pixel 100,000; irregular steps of eighths of a px, which single precision holds there
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(-1, 2) * 2.0
    positions = 1e5 + grid + rng.integers(0, 8, grid.shape) / 8
    found = members(nearest_hyperedges(torch.zeros(900, 16), torch.from_numpy(positions), 3), 900)
    distance = np.sqrt(((positions[:, None] - positions) ** 2).sum(-1))
    np.fill_diagonal(distance, -1.0)
    nearest = np.sort(distance, axis=1)[:, 1:4]
    for i, spots in enumerate(found):  # distances, as several spots may be equally far
        np.testing.assert_array_equal(np.sort(distance[i, list(spots - {i})]), nearest[i])


def test_permuted_spots(section):
    features, positions = section
    torch.manual_seed(0)
    ham = HAM(16, 3, 0.1).eval()
    order = torch.randperm(60)
    found = ham(features[order], positions[order])
    torch.testing.assert_close(found, ham(features, positions)[order])


def test_gradients_reach_every_parameter(section):
    features, positions = section
    ham, h = HAM(16, 3, 0.1), features.clone().requires_grad_()
    ham(h, positions).square().sum().backward()
    for name, values in [("h", h), *ham.named_parameters()]:
        assert torch.isfinite(values.grad).all(), name
        assert values.grad.abs().sum() > 0, name
