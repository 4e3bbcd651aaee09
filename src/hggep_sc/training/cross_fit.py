"""Training sections left out in turn: what networks and linear paths that never saw them make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..features.describe import PLAIN, of_views
from ..features.patches import BATCH_SPOTS
from ..nn import Ensemble, HGGEPNetwork
from ..prediction.chunks import predict_in_chunks, spots_at_once
from ..prediction.linear import LinearPath
from ..runtime.progress import bar
from ..section.expression import ExpressionScale
from .data import SectionData
from .split import leave_out

TURNS = 5  # in which training sections are left out, each once


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Spots of a section, or of a block of the only one, and their prediction without them.

    Attributes
    ----------
    observed
        (n, n_genes) log expression, natural log units.
    network, linear
        (n, n_genes) predictions centred over these spots, natural log units; no `linear` without such a path.
    counts, totals
        (n, n_genes) raw, and (n,) what they are divided by.
    """

    observed: np.ndarray
    network: np.ndarray
    linear: np.ndarray | None
    counts: np.ndarray
    totals: np.ndarray

    def mixed(self, weights: "Weights") -> np.ndarray:
        """Return the weighed prediction, centred."""
        network = weights.network * self.network
        return network if self.linear is None else network + weights.linear * self.linear


@dataclass(frozen=True)
class Weights:
    """What the network's and the linear path's centred predictions are multiplied by before they are added."""

    network: float
    linear: float

    @classmethod
    def of(cls, held_out: Sequence[HeldOut]) -> "Weights | None":
        """Non-negative least squares over all genes of what was held out; sections count alike.

        Returns
        -------
        None where neither has anything to say.
        """
        from scipy.optimize import nnls

        products, sides = np.zeros((2, 2)), np.zeros(2)
        for part in held_out:
            linear = np.zeros_like(part.network) if part.linear is None else part.linear
            paths = np.stack([part.network.ravel(), linear.ravel()]).astype(np.float64)
            target = (part.observed - part.observed.mean(0)).ravel()
            products += paths @ paths.T / target.size
            sides += paths @ target / target.size
        # |root' w - root^-1 sides|^2 differs from the squared error by a constant alone
        values, vectors = np.linalg.eigh(products)
        told = values > 1e-12 * max(values.max(), 1e-300)
        if not told.any():
            return None
        root = np.sqrt(values[told])[:, None] * vectors[:, told].T
        network, linear = nnls(root, vectors[:, told].T @ sides / np.sqrt(values[told]))[0]
        return None if network == linear == 0 else cls(float(network), float(linear))


def cross_fit(
    training: Sequence[SectionData],
    fit: Callable[[list[SectionData]], tuple[HGGEPNetwork | Ensemble, LinearPath | None]],
    scale: ExpressionScale,
    *,
    seed: int,
    progress: bool,
) -> list[HeldOut]:
    """Leave each training section or group out (in at most five turns; blocks of the only one), fit, and predict it.

    Parameters
    ----------
    training
        The sections; spots that are not observed have no part in it.
    fit
        Fits a network and a linear path to some of the data.
    scale
        The expression scale.
    seed
        Of the blocks.
    """
    held_out = []
    turns = leave_out([data.xy for data in training], [data.group for data in training], seed, TURNS)
    for masks in bar(turns, what="cross-fit", unit="fit", show=progress):
        kept = [replace(d, observed=d.observed & ~mask) for d, mask in zip(training, masks, strict=True)]
        if sum(data.observed.sum() for data in kept) < 2:
            continue
        network, linear = fit([data for data in kept if data.observed.any()])
        for data, mask in zip(training, masks, strict=True):
            seen = data.observed & mask
            if seen.sum() < 2:
                continue
            expression = predict_data(network, data)[seen] * scale.log_unit
            path = None
            if linear is not None and data.linear is not None:
                path = linear.predict(data.linear)[seen] * scale.log_unit
                path = path - path.mean(0)
            held_out.append(
                HeldOut(
                    data.expression[seen] * scale.log_unit,
                    expression - expression.mean(0),
                    path,
                    data.counts[seen],
                    data.totals[seen],
                )
            )
    return held_out


def predict_data(network: HGGEPNetwork | Ensemble, data: SectionData) -> np.ndarray:
    """Predict a section that is held for training, (n_spots, n_genes)."""
    network.eval()
    device = network.gene_mean.device
    expression, _ = predict_in_chunks(
        network,
        data_features(network, data),
        data.xy,
        torch.from_numpy(data.positions).to(device),
        network.config,
        name=data.name,
        max_spots=spots_at_once(len(data.xy), network.config, device, name=data.name),
    )
    return expression


@torch.no_grad()
def data_features(network: HGGEPNetwork | Ensemble, data: SectionData) -> np.ndarray:
    """Return the features of a section that is held for training, (n, 1, fields, D)."""
    if data.holds_features:
        return data.seen[:, None]
    assert isinstance(network, HGGEPNetwork)  # an ensemble is given features
    device = network.gene_mean.device
    encode = of_views(network.encode, PLAIN)
    starts = range(0, len(data.seen), BATCH_SPOTS)
    parts = (torch.from_numpy(data.seen[start : start + BATCH_SPOTS]).to(device) for start in starts)
    return np.concatenate([encode(part).float().cpu().numpy() for part in parts])
