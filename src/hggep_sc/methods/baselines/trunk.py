"""The pretrained trunk that baselines see through, beside statistics of colour and texture."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ...encoders.weights import load_pretrained, locate_weights
from ...nn import ShuffleNetEncoder
from ...runtime.random_state import own_random_state


class Trunk(ShuffleNetEncoder):
    """Stem (without max-pool, as in HGGEP) and stages 2 to 4 of ShuffleNetV2 x0.5, each stage averaged over its map."""

    @classmethod
    def pretrained(cls, weights: str | Path | None, seed: int) -> Self | None:
        """Return a trunk with pretrained weights, see `hggep_sc.tl.fit`; none for None: random ones teach nothing."""
        path = locate_weights(weights)
        if path is None:
            return None
        with own_random_state(seed):  # for entries that the file lacks
            trunk = cls()
        load_pretrained(trunk, path)
        return trunk.eval()

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild a trunk from its state dict, without drawing weights."""
        with torch.device("meta"):
            trunk = cls()
        trunk.load_state_dict(state, assign=True)
        return trunk.eval()
