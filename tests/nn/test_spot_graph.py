import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from hggep_sc.nn.spot_graph import GraphAttention, GraphAttentionHead, GraphLayer, nearest

GRID = torch.cartesian_prod(torch.arange(6), torch.arange(5))


def by_sorting(positions, k, reach):
    """The same by a stable sort of each spot's distances."""
    distance = cdist(positions, positions)
    found = np.zeros_like(distance)
    for i, row in enumerate(distance):
        others = [j for j in np.argsort(row, kind="stable") if j != i][:k]
        found[i, [j for j in others if reach is None or row[j] <= reach]] = 1
    return found


@pytest.mark.parametrize("reach", [None, 2.0, 1.0])
@pytest.mark.parametrize("hexagonal", [False, True])
def test_nearest_spots(reach, hexagonal):
    positions = GRID.clone()
    if hexagonal:
        positions[:, 0] = 2 * positions[:, 0] + positions[:, 1] % 2
    positions = torch.cat([positions, torch.tensor([[40, 40]])])[torch.randperm(31)]
    np.testing.assert_array_equal(nearest(positions, 4, reach), by_sorting(positions.numpy(), 4, reach))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_spots_than_neighbours(n):
    np.testing.assert_array_equal(nearest(GRID[:n], 4), 1 - np.eye(n))


def test_spots_in_one_place_see_each_other_not_themselves():
    np.testing.assert_array_equal(nearest(torch.tensor([[3, 3], [3, 3], [3, 3]]), 1), [[0, 1, 0], [1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_graph_layer_by_its_formula(pooling):
    layer = GraphLayer(5, pooling)
    adjacency = nearest(torch.cat([GRID[:7], torch.tensor([[40, 40]])]), 3, 2.0)
    x = torch.randn(8, 5, requires_grad=True)
    found = layer(x, adjacency)
    for i in range(7):
        neighbours = x[adjacency[i] > 0]
        pooled = neighbours.mean(0) if pooling == "mean" else neighbours.max(0).values
        expected = F.relu(layer.weight @ pooled)
        torch.testing.assert_close(found[i], expected / expected.norm().clamp_min(1e-12))
    assert not found[7].any()  # which has no neighbour
    found.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    views = torch.stack([x, x.flip(0)])
    torch.testing.assert_close(layer(views, adjacency)[1], layer(x.flip(0), adjacency))


@pytest.mark.parametrize("normalise", ["receivers", "neighbours"])
def test_graph_attention_by_its_formula(normalise):
    head = GraphAttentionHead(5, 3, 0.0, normalise).double()
    adjacency = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]])  # nobody looks at the last
    x = torch.randn(4, 5, dtype=torch.float64)
    h = x @ head.W
    scores = np.full((4, 4), -np.inf)
    for i, j in adjacency.nonzero().tolist():
        score = (torch.cat([h[i], h[j]]) @ head.a[:, 0]).item()
        scores[i, j] = score if score > 0 else 0.01 * score
    axis = 0 if normalise == "receivers" else 1
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores) / np.exp(scores).sum(axis, keepdims=True)
    weights = np.where(np.isnan(weights), 0.25, weights)  # to all alike
    assert (weights[:, 3] == (0.25 if normalise == "receivers" else 0)).all()
    torch.testing.assert_close(head(x, adjacency), torch.from_numpy(weights) @ h)


def test_graph_attention_of_one_spot_and_of_none_that_look():
    network = GraphAttention(5, 4, 3, 2, 0.0, "receivers")
    for adjacency in (torch.zeros(1, 1), torch.zeros(3, 3)):
        x = torch.randn(len(adjacency), 5, requires_grad=True)
        out = network(x, adjacency)
        assert out.shape == (len(x), 3)
        out.sum().backward()
        assert x.grad.isfinite().all()
