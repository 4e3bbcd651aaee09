"""What the rivals share that see a section's spots together, and know each by its place on the array."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...config import plain
from ...errors import InputError
from ...nn import Batch
from ...nn.spot_transformer import HEAD_WIDTH
from ...runtime.validators import number
from ...section import Section
from .base import Rival, RivalConfig, RivalNetwork

MOST_POSITIONS = 2**16


@dataclass(frozen=True)
class OnArrayConfig(RivalConfig):
    """Settings of rivals that see a section's spots together, beside those of all rivals.

    Parameters
    ----------
    vit_heads
        Attention heads of each transformer block.
    head_width
        Length of a head's queries, keys and values.
    dropout
        Of the tokens and in the transformer.
    n_positions
        Rows of both tables of position embeddings, one for each array coordinate from 0 on. A fit takes as many as
        its training sections need, where that is more.
    """

    head_width: int = HEAD_WIDTH
    dropout: float = 0.2
    n_positions: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_positions > MOST_POSITIONS:
            raise ValueError(f"config.n_positions={self.n_positions} must be at most {MOST_POSITIONS}")
        object.__setattr__(self, "dropout", number("config.dropout", plain(self.dropout), least=0, most=1))


class OnArray(Rival):
    """A rival that sees a section's spots together, and knows each by its place on the array."""

    @classmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """Adam, at one rate."""
        return torch.optim.Adam(parameters, config.learning_rate)

    @classmethod
    def fitted_to(cls, config: RivalConfig, sections: Sequence[Section]) -> RivalConfig:
        """Give the tables of positions as many rows as the training sections need."""
        assert isinstance(config, OnArrayConfig)
        needed = 1 + max(int(section.array_xy().max()) for section in sections)
        return config.replace(n_positions=max(config.n_positions, min(needed, MOST_POSITIONS)))

    @classmethod
    def positions(cls, section: Section, config: RivalConfig) -> np.ndarray:
        """Array coordinates of the spots, (n_spots, 2): x, y.

        Raises
        ------
        MissingSlotError
            If there are none.
        InputError
            If the model has no position embedding for one.
        """
        assert isinstance(config, OnArrayConfig)
        places, known = section.array_xy(), config.n_positions
        if ((places < 0) | (places >= known)).any():
            raise InputError(
                f'section {section.name!r}: obs["array_col"], obs["array_row"] hold {places.min()} to {places.max()}, '
                f"but the model has position embeddings for 0 to {known - 1} alone: fit one with "
                f'method={cls.method!r} on sections of such arrays, or with config={{"n_positions": ...}}'
            )
        return places


def squared_error(network: RivalNetwork, batch: Batch) -> dict[str, Tensor]:
    """Mean squared error over the spots with counts, and genes, of a section."""
    assert batch.patches is not None  # there is no other encoder
    prediction = network.decode(network.encode(batch.patches), batch.positions).expression
    return {"loss": mse_loss(prediction[batch.observed], batch.expression[batch.observed])}
