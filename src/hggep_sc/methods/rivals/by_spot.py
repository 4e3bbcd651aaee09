"""What the rivals share that see each spot by itself: batches of spots of any section, and spots that are held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...encoders.weights import locate_weights, read_state_dict
from ...errors import ModelError
from ...nn import Batch
from ...training.augmentation import random_dihedral
from ...training.checkpoint import FURTHER
from ...training.data import SectionData, parted
from ...training.loop import SpotOrder, Spots
from ...training.run import Run
from .base import Rival, RivalConfig

HELD_OUT = 0.2  # share of the training spots that tells when there has been enough training


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


class BySpotNetwork(nn.Module):
    """What the networks of these rivals share: how a batch is seen, and pixels that are centred and scaled.

    Parameters
    ----------
    pixel_mean, pixel_std
        Of the channels as the network takes them, in 0..1. They are no entries of a published state dict.
    """

    pixel_mean: Tensor  # (3, 1, 1)
    pixel_std: Tensor

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        for name, values in {"pixel_mean": pixel_mean, "pixel_std": pixel_std}.items():
            # on the CPU also where weights are not drawn
            buffer = torch.tensor(tuple(values), device="cpu").view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S), 0..255, to (N, n_features)."""
        raise NotImplementedError

    def normalised(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S), 0..255, centred and scaled."""
        return (pixels / 255 - self.pixel_mean) / self.pixel_std

    def seen(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Features of a batch, (N, n_features): another encoder's, or of patches, turned and mirrored in training."""
        if batch.features is not None:
            return batch.features.flatten(1)
        assert batch.patches is not None  # a batch holds one or the other
        return self.encode(random_dihedral(batch.patches, generator) if self.training else batch.patches)


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


def stage(run: Run, number: int) -> Run:
    """Return the run of one of several trainings of a fit, with a folder of its own."""
    around = run.checkpoint_dir
    return run if around is None or number == 0 else replace(run, checkpoint_dir=around / f"{FURTHER}_{number}")


def with_some_held_out(data: list[SectionData], seed: int) -> tuple[list[SectionData], list[SectionData]]:
    """Part sections at random; all spots are learnt from, and none held out, where either part would have none."""
    draws = np.random.default_rng(seed)
    learnt, others = parted(data, [draws.random(len(part.xy)) < HELD_OUT for part in data])
    return (learnt, others) if learnt and others else (data, [])


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
        device = pl_module.device
        with torch.no_grad():
            total = sum(self.measure(pl_module.transfer_batch_to_device(batch, device, 0)) for batch in self.batches)
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
