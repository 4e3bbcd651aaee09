import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from hggep_sc.tl._leiden import expression_graph, leiden, most_variable, resolution_for, spatial_graph


def blobs(n=150, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 30)) + rng.normal(scale=2, size=(5, 30))[np.arange(n) % 5]


def hexagonal(width, height):
    row, column = np.mgrid[:height, :width]
    return np.column_stack([(column + 0.5 * (row % 2)).ravel(), (row * np.sqrt(0.75)).ravel()])


def square(width, height):
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(float)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("resolution", "seed"), [(0.5, 0), (1.0, 1), (2.0, 2)])
def test_expression_alone_is_what_scanpy_gives(resolution, seed):
    spots = AnnData(blobs())
    sc.pp.pca(spots, n_comps=10, random_state=seed)
    sc.pp.neighbors(spots, use_rep="X_pca", random_state=seed)
    sc.tl.leiden(spots, resolution, flavor="leidenalg", random_state=seed)
    graph = expression_graph(spots.X, n_pcs=10, n_neighbors=15, seed=seed)
    assert (graph != spots.obsp["connectivities"]).nnz == 0
    codes = leiden([graph], [1.0], resolution, seed=seed)
    theirs = spots.obs["leiden"].astype(int).to_numpy()
    assert len(set(zip(codes, theirs, strict=True))) == codes.max() + 1 == theirs.max() + 1


def test_a_second_graph_without_weight_changes_nothing():
    graph = expression_graph(blobs(), n_pcs=10, n_neighbors=15, seed=0)
    places = spatial_graph(square(15, 10), np.zeros(150))
    alone = leiden([graph], [1.0], 1.0, seed=0)
    assert np.array_equal(leiden([graph, places], [1.0, 0.0], 1.0, seed=0), alone)
    assert not np.array_equal(leiden([graph, places], [1.0, 2.0], 1.0, seed=0), alone)


def test_domains_are_numbered_by_size():
    cliques = [np.ones((n, n)) - np.eye(n) for n in (3, 6, 4, 6)]
    graph = sparse.csr_matrix(sparse.block_diag(cliques))
    expected = np.repeat([3, 0, 2, 1], [3, 6, 4, 6])
    assert np.array_equal(leiden([graph], [1.0], 1.0, seed=0), expected)


@pytest.mark.parametrize(("grid", "neighbours"), [(hexagonal(9, 9), 6), (square(9, 9), 4)])
def test_neighbours_on_grids(grid, neighbours):
    jittered = 250 * grid + np.random.default_rng(0).uniform(-12, 12, grid.shape)
    graph = spatial_graph(jittered, np.zeros(len(grid)))
    inside = (np.abs(grid - grid.mean(axis=0)) < 3).all(axis=1)
    assert (graph.sum(axis=1)[inside] == neighbours).all()
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0


def test_neighbours_by_all_distances():
    """Ragged tissue, spots at random: joined are those within 1.3 times the median distance to the nearest other."""
    xy = np.random.default_rng(3).random((80, 2)) * 1000
    apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    expected = apart <= 1.3 * np.median(apart.min(axis=1))
    assert np.array_equal(spatial_graph(xy, np.zeros(80)).toarray(), expected)


def test_sections_are_not_joined():
    """Two sections in one place, each with its own spacing, spots interleaved; and a single spot."""
    xy = np.concatenate([square(5, 5), 3 * square(5, 5), [[1.0, 1.0]]])
    section = np.repeat(["a", "b", "c"], [25, 25, 1])
    order = np.random.default_rng(0).permutation(51)
    graph = spatial_graph(xy[order], section[order])
    i, j = graph.nonzero()
    assert (section[order][i] == section[order][j]).all()
    assert graph.nnz == 2 * 2 * 40


def test_most_variable_genes():
    rng = np.random.default_rng(0)
    expression = rng.poisson(0.5, (50, 2500)).astype(np.float32)
    expression[:25, 7] += 9
    chosen = most_variable(sparse.csr_matrix(expression))
    assert 2000 <= chosen.shape[1] < 2050  # genes as variable as the last are in
    assert (chosen.toarray() == expression[:, [7]]).all(axis=0).any()
    assert most_variable(expression[:, :2000]).shape == (50, 2000)
    assert most_variable(expression - 1).shape == (50, 2500)


class TestResolutionFor:
    @pytest.mark.parametrize("n_domains", [1, 2, 37, 3000])
    def test_finds_what_can_be_had(self, n_domains):
        resolution, codes = resolution_for(n_domains, lambda resolution: np.arange(int(resolution * 10) + 1))
        assert int(resolution * 10) + 1 == len(codes) == n_domains

    def test_looks_around_a_jump(self):
        """Ten domains between resolutions 3 and 3.5 alone, below which the number jumps over ten."""

        def partition(resolution):
            return np.arange(10 if 3 < resolution < 3.5 else 12 if resolution > 2.5 else 5)

        resolution, codes = resolution_for(10, partition)
        assert 3 < resolution < 3.5
        assert len(codes) == 10

    def test_says_what_cannot_be_had(self):
        def partition(resolution):
            return np.arange(4 if resolution < 3.3 else 6)

        with pytest.raises(
            ValueError, match=r"n_domains=5 cannot be had.* 4 \(resolution 3\.\d+\) and 6 \(resolution [34]\.\d+\)"
        ):
            resolution_for(5, partition)
        with pytest.raises(ValueError, match=r"n_domains=2 cannot be had.* 4 \(resolution "):
            resolution_for(2, partition)
