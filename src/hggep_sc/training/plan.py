"""How a network is trained: Lightning modules, and what watches over an epoch."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import Tensor

from ..config import Config
from ..errors import CheckpointError, DivergedError
from ..metrics import pearson
from ..nn import Batch, HGGEPNetwork, PublishedNetwork
from ..nn.interface import upload
from ..runtime.progress import bar
from .augmentation import random_dihedral, random_shift, stain_jitter


class TrainSettings(Protocol):
    """What messages name of how a network is trained; `gradient_clip` where there is one."""

    @property
    def epochs(self) -> int:
        """Times that all training spots are seen."""

    @property
    def learning_rate(self) -> float:
        """Of the optimiser."""


class SeededPlan(L.LightningModule):
    """How a network is trained, with all randomness from (seed, epoch, step).

    A run resumed at an epoch's end continues as if it had not been interrupted. Steps are counted over all processes,
    so that n of them, a chunk each, are n accumulated steps of one.
    """

    config: TrainSettings
    positions_on_host: bool = False  # whether `Batch.positions` stay where they are

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        stays = "positions" if self.positions_on_host else ""
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor) and name != stays}
        moved: dict[str, Any] = {name: upload(value, device) for name, value in tensors.items()}
        return replace(batch, **moved)

    def randomness(self, step: int) -> torch.Generator:
        """Seed torch, for dropout, and return what a step draws from; whoever fits restores the caller's state."""
        chunk = step * self.trainer.world_size + self.trainer.global_rank
        seed = _derive_seed(self.seed, self.current_epoch, chunk)
        torch.manual_seed(seed)
        return torch.Generator(self.device).manual_seed(seed)

    def learnt(self) -> dict[str, Tensor]:
        """Return the state that training changes."""
        return self.state_dict()


class TrainingPlan(SeededPlan):
    """Optimiser, schedule, augmentation and the record of every epoch of HGGEP."""

    network: HGGEPNetwork | PublishedNetwork
    config: Config

    def __init__(self, network: HGGEPNetwork | PublishedNetwork, config: Config, seed: int) -> None:
        super().__init__(seed)
        self.network = network
        self.config = config
        self.positions_on_host = network.positions_on_host
        self.strict_loading = False  # a checkpoint lacks a frozen encoder, which may be large, and is at hand
        self._validation: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def configure_optimizers(self) -> Any:
        learnt = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        backbone = [p for name, p in learnt if ".backbone." in f".{name}"]
        rest = [p for name, p in learnt if ".backbone." not in f".{name}"]
        config = self.config
        rates = [config.learning_rate, config.backbone_learning_rate]
        groups: list[dict[str, Any]] = [
            {"params": p, "lr": lr} for p, lr in zip([rest, backbone], rates, strict=True) if p
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        if config.schedule == "constant":
            return optimizer
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // int(self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [g["lr"] for g in groups], epochs=config.epochs, steps_per_epoch=steps_per_epoch
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        generator = self.randomness(step)
        if batch.patches is not None:
            if self.config.flips:
                batch.patches = random_dihedral(batch.patches, generator)
            if self.config.stain_jitter:
                batch.patches = stain_jitter(batch.patches, self.config.stain_jitter, generator)
        if batch.features is not None and isinstance(self.network, HGGEPNetwork) and self.config.feature_shift:
            scale = self.config.feature_shift * self.network.feature_std
            batch.features = random_shift(batch.features, scale, generator)
        return self.network.loss(batch, generator)

    def learnt(self) -> dict[str, Tensor]:
        return without_frozen_encoder(self.network, self.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = without_frozen_encoder(self.network, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what is not of this network, which `strict_loading` would let pass."""
        wanted = self.learnt()
        found = checkpoint["state_dict"]
        if other := sorted(
            name for name in wanted.keys() | found.keys() if _shape_of(wanted, name) != _shape_of(found, name)
        ):
            raise CheckpointError(
                f"{self.trainer.ckpt_path} is of another network ({other[0]} differs): remove it, and what was trained "
                "is trained anew"
            )

    def on_validation_start(self) -> None:
        # statistics of a backbone's batches are those of a process's own chunks: the first one's are judged, and kept
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, step: int) -> None:
        if batch.features is not None:
            features = batch.features
        else:
            assert batch.patches is not None  # a batch holds one or the other
            features = self.network.encode(batch.patches)
        expression = self.network.decode(features, batch.positions).expression
        seen = batch.observed
        pair = expression[seen].float().cpu().numpy(), batch.expression[seen].cpu().numpy()
        self._validation.setdefault(batch.section, []).append(pair)

    def on_validation_epoch_end(self) -> None:
        # mean over genes, then over sections; where no correlation is defined, no epoch is the best
        scores = []
        for pairs in self._validation.values():
            predicted, observed = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            if np.isfinite(r := pearson(predicted, observed)).any():
                scores.append(np.nanmean(r))
        # every process scores all of it; one figure for all, so that they stop together
        self.log("validation_pcc", float(np.mean(scores)) if scores else -1.0, sync_dist=True)
        self._validation.clear()


class History(L.Callback):
    """One record per epoch: the mean of every loss term, and the validation score where there is one."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self._terms: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._terms.clear()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._terms.append({name: value.detach() for name, value in outputs.items()})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        record: dict[str, float] = {"epoch": trainer.current_epoch}
        for name in self._terms[0]:
            mean = torch.stack([terms[name] for terms in self._terms]).mean()
            record[name] = cast(Tensor, trainer.strategy.reduce(mean, reduce_op="mean")).item()
        if "validation_pcc" in trainer.callback_metrics:
            record["validation_pcc"] = trainer.callback_metrics["validation_pcc"].item()
        self.records.append(record)

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = list(state_dict["records"])


class EndIfDiverged(L.Callback):
    """End a training whose loss or weights are no numbers any more, before a checkpoint holds them.

    Parameters
    ----------
    history
        Of the same training, which has noted the epoch before.
    plan
        What is trained, and how.
    sections
        What it learns from, for the message.
    """

    def __init__(self, history: History, plan: SeededPlan, sections: Sequence[str]) -> None:
        self.history, self.plan, self.sections = history, plan, sections

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        lost = [f"{name} {value}" for name, value in self.history.records[-1].items() if not isfinite(value)]
        if not lost:
            lost = [name for name, values in self.plan.learnt().items() if not values.isfinite().all()][:1]
        if trainer.strategy.reduce_boolean_decision(bool(lost), all=False):
            config = self.plan.config
            clip = getattr(config, "gradient_clip", None)
            clipped = "" if clip is None else f"clip gradients by config.gradient_clip (now {clip:g}; 0 is off), "
            raise DivergedError(
                f"training on {', '.join(self.sections)} diverged in epoch {trainer.current_epoch + 1} of "
                f"{config.epochs} (not finite: {', '.join(lost) or 'what another process holds'}), and there is no "
                f"model: lower config.learning_rate (now {config.learning_rate:g}), {clipped}or look for counts far "
                "out of the ordinary"
            )


class SaveLast(Checkpoint):
    """Write a checkpoint every so many epochs, after all other callbacks have seen the epoch's end."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every == 0:
            trainer.save_checkpoint(self.file)


class StopEarly(EarlyStopping):
    """Early stopping that stays stopped when a finished training is resumed."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class KeepBest(L.Callback):
    """Keep the weights of the epoch with the best validation score, and restore them at the end."""

    def __init__(self, network: HGGEPNetwork | PublishedNetwork) -> None:
        self.network = network
        self.best_score = -np.inf
        self.best_epoch = -1
        self.best_weights: dict[str, Tensor] = {}  # without a frozen encoder's

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = trainer.callback_metrics["validation_pcc"].item()
        if score > self.best_score:
            self.best_score, self.best_epoch = score, trainer.current_epoch
            learnt = without_frozen_encoder(self.network, self.network.state_dict())
            self.best_weights = {k: v.detach().cpu().clone() for k, v in learnt.items()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best_weights:
            self.network.load_state_dict(self.best_weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.best_score, "epoch": self.best_epoch, "weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["score"], state_dict["epoch"]
        self.best_weights = state_dict["weights"]


class EpochProgress(L.Callback):
    """One bar for the whole training, an epoch a tick."""

    def __init__(self, history: History, what: str) -> None:
        self.history, self.what = history, what

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = bar(total=trainer.max_epochs, initial=trainer.current_epoch, what=self.what, unit="epoch", show=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = {k: f"{v:.3f}" for k, v in self.history.records[-1].items() if k in ("loss", "validation_pcc")}
        self.bar.set_postfix(last, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def without_frozen_encoder(network: HGGEPNetwork | PublishedNetwork, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out of a state what no training changes, which may be large."""
    encoder = network.encoder if isinstance(network, HGGEPNetwork) else None
    if encoder is None or any(parameter.requires_grad for parameter in encoder.parameters()):
        return state
    return {name: value for name, value in state.items() if "encoder." not in name}


def _shape_of(state: dict[str, Tensor], name: str) -> torch.Size | None:
    """Return the shape of an entry; None where there is none."""
    return state[name].shape if name in state else None


def _derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
