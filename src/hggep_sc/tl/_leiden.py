"""Domains: communities of spots in the graph of like expression, and in that of places."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ..runtime.imports import within_squidpy
from ..section import spot_spacing

MAX_GENES = 2000  # of a layer that holds more, the most variable
MAX_BISECTIONS, CLOSE = 30, 1.001  # resolutions tried to find a number of domains, and the ratio that ends it
AROUND, N_AROUND = 1.5, 20  # then as many, evenly up to this ratio around the last
REACH = 1.3  # spot spacings: 6 neighbours on a hexagonal grid, 4 on a square one, whose diagonals are at 1.41


def most_variable(expression: np.ndarray | sparse.csr_matrix) -> np.ndarray | sparse.csr_matrix:
    """Return the 2,000 most variable genes (Scanpy's "seurat", ties included) where there are more.

    Values below 0 are no plain log expression, and genes are not chosen among them.
    """
    if expression.shape[1] <= MAX_GENES or expression.min() < 0:
        return expression
    import scanpy as sc
    from anndata import AnnData

    ranked = sc.pp.highly_variable_genes(AnnData(expression), n_top_genes=MAX_GENES, flavor="seurat", inplace=False)
    return expression[:, np.flatnonzero(ranked["highly_variable"])]


def expression_graph(
    expression: np.ndarray | sparse.csr_matrix, *, n_pcs: int, n_neighbors: int, seed: int
) -> sparse.csr_matrix:
    """Weigh how alike spots are in expression, as Scanpy does: PCA, nearest neighbours, UMAP's connectivities.

    Parameters
    ----------
    expression
        (n_spots, n_genes) log expression.
    n_pcs, n_neighbors
        How many; fewer where there are fewer spots or genes.
    seed
        Determines what is random.

    Returns
    -------
    (n_spots, n_spots) symmetric weights.
    """
    import scanpy as sc
    from anndata import AnnData

    # predictions differ little from spot to spot beside their mean: too little for float32
    spots = AnnData(expression.astype(np.float64))
    sc.pp.pca(spots, n_comps=min(n_pcs, *(size - 1 for size in spots.shape)), random_state=seed)
    sc.pp.neighbors(spots, n_neighbors=min(n_neighbors, spots.n_obs - 1), use_rep="X_pca", random_state=seed)
    return sparse.csr_matrix(spots.obsp["connectivities"])


def spatial_graph(xy: np.ndarray, section: np.ndarray) -> sparse.csr_matrix:
    """Join each spot with those around it in the same section.

    Parameters
    ----------
    xy
        (n_spots, 2) coordinates.
    section
        (n_spots,) which section each spot is of.

    Returns
    -------
    (n_spots, n_spots) symmetric, 1 for spots within 1.3 spot spacings (the section's median distance to the nearest
    neighbour): six on a hexagonal grid, four on a square one.
    """
    joined = [np.empty((2, 0), dtype=np.int64)]
    with within_squidpy():
        from squidpy.gr.neighbors import RadiusBuilder

        for name in np.unique(section):
            rows = np.flatnonzero(section == name)
            if (spacing := spot_spacing(xy[rows])) is not None:
                graph, _ = RadiusBuilder(REACH * spacing).build(xy[rows])
                joined.append(rows[np.array(graph.nonzero())])
    i, j = np.concatenate(joined, axis=1)
    return sparse.csr_matrix((np.ones(len(i)), (i, j)), shape=(len(xy), len(xy)))


def leiden(
    graphs: Sequence[sparse.csr_matrix], layer_weights: Sequence[float], resolution: float, *, seed: int
) -> np.ndarray:
    """Partition the spots by Leiden on one graph, or on several at once (Traag et al. 2019).

    Maximised is the sum over graphs, by their weights, of modularity with a resolution (Reichardt and Bornholdt),
    every graph scaled to the total weight of the first, until no move of a spot betters it.

    Parameters
    ----------
    graphs
        (n_spots, n_spots) symmetric weights, of the same spots.
    layer_weights
        One for each graph.
    resolution
        The higher, the more domains.
    seed
        Determines the order in which spots are moved.

    Returns
    -------
    (n_spots,) int64 codes: 0 is the largest domain, equals in the order of their first spots.
    """
    import leidenalg

    layers = [_igraph(graph * (graphs[0].sum() / graph.sum())) for graph in graphs]
    membership, _ = leidenalg.find_partition_multiplex(
        layers,
        leidenalg.RBConfigurationVertexPartition,
        layer_weights=list(layer_weights),
        n_iterations=-1,
        seed=seed,
        weights="weight",
        resolution_parameter=resolution,
    )
    _, first, codes, sizes = np.unique(membership, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), dtype=np.int64)
    place[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return place[codes]


def resolution_for(n_domains: int, partition: Callable[[float], np.ndarray]) -> tuple[float, np.ndarray]:
    """Find a resolution that gives a number of domains: by bisection, then around where that ends.

    Parameters
    ----------
    n_domains
        The number.
    partition
        Resolution to codes, as `leiden` gives them.

    Returns
    -------
    The resolution, and its codes.

    Raises
    ------
    ValueError
        If none of at most fifty resolutions gives that number; the message says which numbers were met.
    """
    tried: dict[float, int] = {}
    low, high, resolution = 0.0, np.inf, 1.0
    while len(tried) < MAX_BISECTIONS and high > CLOSE * low:
        codes = partition(resolution)
        tried[resolution] = int(codes.max()) + 1
        if tried[resolution] == n_domains:
            return resolution, codes
        low, high = (resolution, high) if tried[resolution] < n_domains else (low, resolution)
        if low == 0 or high == np.inf:
            resolution *= 0.5 if low == 0 else 2
        else:
            resolution = float(np.sqrt(low * high))
    # the number does not rise evenly: it may be met on either side of where it jumps over
    for nearby in np.geomspace(resolution / AROUND, resolution * AROUND, N_AROUND).tolist():
        codes = partition(nearby)
        tried[nearby] = int(codes.max()) + 1
        if tried[nearby] == n_domains:
            return nearby, codes
    nearest = sorted({n: r for r, n in tried.items()}.items(), key=lambda item: abs(item[0] - n_domains))[:2]
    met = " and ".join(f"{n} (resolution {r:.4g})" for n, r in sorted(nearest))
    raise ValueError(
        f"n_domains={n_domains} cannot be had: of {len(tried)} resolutions from {min(tried):.4g} to {max(tried):.4g} "
        f"none gives it, the nearest numbers are {met}. Ask for one of these, or try another n_neighbors or seed"
    )


def _igraph(graph: sparse.csr_matrix) -> Any:
    """Directed graph with every edge in both directions, as `scanpy.tl.leiden` builds it."""
    import igraph

    edges = graph.tocoo()
    return igraph.Graph(
        n=graph.shape[0],
        edges=np.column_stack([edges.row, edges.col]),
        edge_attrs={"weight": edges.data.astype(np.float64)},
        directed=True,
    )
