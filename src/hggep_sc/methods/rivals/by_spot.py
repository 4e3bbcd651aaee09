"""What the rivals share that see each spot by itself: batches of spots of any section, and spots that are held out."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...config import plain
from ...encoders.weights import locate_weights, read_state_dict
from ...errors import ModelError
from ...nn import Batch
from ...nn.interface import upload
from ...runtime.validators import whole
from ...training.checkpoint import FURTHER, last_checkpoint
from ...training.data import SectionData
from ...training.loop import SpotOrder, Spots
from ...training.run import Run
from .base import Rival, RivalConfig


@dataclass(frozen=True)
class BySpotConfig(RivalConfig):
    """Settings of rivals that see each spot by itself, beside those of all rivals.

    Parameters
    ----------
    batch_spots
        Spots of a training step, of any section.
    """

    patch_size: int = 224
    fields_px: tuple[float, ...] = (224.0,)
    batch_spots: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            if field.type is int:
                value = whole(f"config.{field.name}", plain(getattr(self, field.name)))
                object.__setattr__(self, field.name, value)


class BySpot(Rival):
    """A rival that sees each spot by itself, through its own backbone or another encoder."""

    takes = Rival.takes - {"chunk_spots"} | {"encoder", "weights"}
    sees_sections = False
    whole_batches = False  # whether a last batch of an epoch that is not full is left out

    @classmethod
    def batches(cls, data: list[SectionData], config: RivalConfig, run: Run) -> "DataLoader[Batch]":
        """Return an epoch's batches of spots of any section, in an order drawn for every epoch."""
        assert isinstance(config, BySpotConfig)
        spots = Spots(data)
        order = SpotOrder(len(spots), config.batch_spots, run.seed, whole=cls.whole_batches)
        return DataLoader(spots, batch_size=None, sampler=order)

    @classmethod
    def in_turn(cls, data: list[SectionData], config: RivalConfig) -> list[Batch]:
        """Return batches of all spots, in order."""
        assert isinstance(config, BySpotConfig)
        spots, size = Spots(data), config.batch_spots
        return [spots[list(range(i, min(i + size, len(spots))))] for i in range(0, len(spots), size)]


def load_backbone(network: nn.Module, weights: str | Path | None, name: str, rename: Callable[..., Any] = dict) -> None:
    """Fill a backbone from a file of ImageNet weights, but for a classifier; None leaves it as it was drawn.

    Parameters
    ----------
    network
        The backbone.
    weights, name
        As in `locate_weights`.
    rename
        Brings the file's entries to the backbone's names.

    Raises
    ------
    ModelError
        If the file is of another network.
    """
    if (path := locate_weights(weights, name)) is None:
        return
    wanted, found = network.state_dict(), rename(read_state_dict(path))
    needed = [entry for entry in wanted if not entry.endswith("num_batches_tracked")]
    if lacking := [entry for entry in needed if entry not in found or found[entry].shape != wanted[entry].shape]:
        raise ModelError(f"{path} is not a file of {name}'s weights: {lacking[0]} is missing or has another shape")
    network.load_state_dict({entry: value for entry, value in found.items() if entry in wanted}, strict=False)


def stage(run: Run, number: int) -> tuple[Run, Path | None]:
    """Return the run of one of several trainings of a fit, with a folder of its own, and where it goes on from."""
    around = run.checkpoint_dir
    folder = around if around is None or number == 0 else around / f"{FURTHER}_{number}"
    return replace(run, checkpoint_dir=folder), last_checkpoint(folder)


def parted(data: list[SectionData], held_out: list[np.ndarray]) -> tuple[list[SectionData], list[SectionData]]:
    """Return the same sections with the spots that are learnt from, and with those that are held out (bool masks)."""
    learnt = [replace(part, observed=part.observed & ~mask) for part, mask in zip(data, held_out, strict=True)]
    others = [replace(part, observed=part.observed & mask) for part, mask in zip(data, held_out, strict=True)]
    return [part for part in learnt if part.observed.any()], [part for part in others if part.observed.any()]


class HeldOut(L.Callback):
    """What spots that are not learnt from tell after every epoch; the best epoch's weights, and an early end.

    Parameters
    ----------
    network
        What is trained.
    measure
        What is to be low, of the network in evaluation mode and a batch moved to its device.
    batches
        Of the held-out spots; the measure is summed over them.
    keep
        Whether the weights of the best epoch are put back in the end.
    patience
        Epochs without a better one, after which training ends; None for none.
    """

    def __init__(
        self,
        network: nn.Module,
        measure: Callable[[Batch], float],
        batches: list[Batch],
        *,
        keep: bool = False,
        patience: int | None = None,
    ) -> None:
        self.network, self.measure, self.batches, self.keep, self.patience = network, measure, batches, keep, patience
        self.found: list[float] = []
        self.best: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self._is_late()  # also where a training that had ended is resumed

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.network.eval()
        with torch.no_grad():
            total = sum(self.measure(self._moved(batch, pl_module.device)) for batch in self.batches)
        self.network.train()
        if self.keep and total < min(self.found, default=np.inf):
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        self.found.append(total)
        trainer.should_stop = self._is_late()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best:
            self.network.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found, self.best = list(state_dict["found"]), dict(state_dict["best"])

    def _is_late(self) -> bool:
        if self.patience is None or not self.found:
            return False
        return len(self.found) > self.patience + int(np.argmin(self.found))

    @staticmethod
    def _moved(batch: Batch, device: torch.device) -> Batch:
        held = vars(batch).items()
        moved: dict[str, Any] = {name: upload(value, device) for name, value in held if isinstance(value, Tensor)}
        return replace(batch, **moved)
