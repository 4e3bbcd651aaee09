"""Labels of a SpatialData as spots: where each instance lies, from pixels that are read by chunks."""

from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError


class Instances(NamedTuple):
    """Instances of a labelled image: (n,) ascending labels, (n, 2) centres (x, y) in its px, (n,) areas in px."""

    labels: np.ndarray
    centres: np.ndarray
    areas: np.ndarray


def instances_of(element: Any, key: str) -> Instances:
    """Find the instances of labels, at their finest scale.

    Parameters
    ----------
    element
        Labels, of one scale or several; 0 is background.
    key
        Their name.

    Raises
    ------
    InputError
        If they are not a plane of rows and columns.
    """
    from xarray import DataTree

    if isinstance(element, DataTree):
        scales = [next(iter(scale.data_vars.values())) for scale in element.children.values()]
        element = max(scales, key=lambda scale: int(scale.sizes["x"]))
    if tuple(element.dims) != ("y", "x"):
        raise InputError(f"labels {key!r} have the axes {element.dims}; ('y', 'x') is expected")
    found: dict[int, np.ndarray] = {}  # label -> area, sum of x, sum of y
    for window, pixels in _chunks(element.data):
        labels, inverse = np.unique(pixels, return_inverse=True)
        inverse = inverse.ravel()
        y, x = (np.arange(axis.start, axis.stop) + 0.5 for axis in window)  # centres of pixels
        sums = np.stack(
            [
                np.bincount(inverse),
                np.bincount(inverse, weights=np.tile(x, len(y))),
                np.bincount(inverse, weights=np.repeat(y, len(x))),
            ],
            axis=1,
        )
        for label, of_label in zip(labels.tolist(), sums, strict=True):
            if label != 0:
                found[label] = found[label] + of_label if label in found else of_label
    known = np.array(sorted(found))
    totals = np.array([found[label] for label in known.tolist()]).reshape(-1, 3)
    return Instances(known, totals[:, 1:] / totals[:, :1], totals[:, 0])


def _chunks(pixels: Any) -> Any:
    """Yield the window and the pixels of each chunk."""
    from dask.array import asarray
    from dask.array.core import slices_from_chunks

    lazy = asarray(pixels)
    for window in slices_from_chunks(lazy.chunks):
        yield window, np.asarray(lazy[window])
