"""One training by Lightning: in what order an epoch takes its batches, and what is kept of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..nn import Batch
from ..prediction.chunks import spatial_chunks
from .checkpoint import CHECKPOINT, WholeCheckpoints
from .data import SectionData
from .devices import Devices
from .plan import EndIfDiverged, EpochProgress, History, SaveLast, SeededPlan
from .run import Run


class Chunks(Dataset[Batch]):
    """Compact chunks of the sections, those with an observed spot."""

    def __init__(self, data: list[SectionData], max_spots: int | None) -> None:
        chunks = [(d, spots) for d in data for spots in spatial_chunks(d.xy, max_spots)]
        self.chunks = [(d, spots) for d, spots in chunks if d.observed[spots].any()]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch:
        data, spots = self.chunks[index]
        return data.batch(spots)


class EpochOrder(Sampler[int]):
    """A process's share of the chunks, in an order that depends on (seed, epoch) alone; Lightning calls `set_epoch`.

    The processes take turns; where they do not come out even, the last take chunks of the epoch's start once more.
    An epoch takes `most` chunks at most, others in each epoch.
    """

    def __init__(self, n: int, seed: int, devices: Devices, most: int | None = None) -> None:
        self.n, self.seed, self.devices, self.epoch = n, seed, devices, 0
        self.taken = n if most is None else min(n, most)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.taken // self.devices.number)

    def __iter__(self) -> Iterator[int]:
        # drawn when the first is asked for: Lightning iterates over a resumed epoch before it calls `set_epoch`
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)[: self.taken]
        even = np.resize(order, len(self) * self.devices.number)
        yield from even[self.devices.rank :: self.devices.number].tolist()


class Spots(Dataset[Batch]):
    """Observed spots of all sections, one after the other; a list of their numbers gives a batch of any of them."""

    def __init__(self, data: list[SectionData]) -> None:
        self.data = data
        self.of = [(section, spot) for section, part in enumerate(data) for spot in np.flatnonzero(part.observed)]

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, numbers: list[int]) -> Batch:
        chosen = np.array([self.of[number] for number in numbers])
        order = np.argsort(chosen[:, 0], kind="stable")
        parts = [
            self.data[section].batch(chosen[order][chosen[order][:, 0] == section, 1])
            for section in np.unique(chosen[:, 0])
        ]
        places = torch.from_numpy(np.argsort(order))  # back to the order that was drawn

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)[places]

        names = ("patches", "features", "positions", "expression", "counts", "size_factors")
        return Batch(**{name: joined(name) for name in names}, observed=torch.arange(len(numbers)))  # type: ignore[arg-type]


class SpotOrder(Sampler[list[int]]):
    """Batches of spots, in an order that depends on (seed, epoch) alone.

    Parameters
    ----------
    n
        How many spots there are.
    size
        Of a batch.
    seed
        Of the fit.
    whole
        Whether a last batch that is not full is left out, if it is not the only one.
    """

    def __init__(self, n: int, size: int, seed: int, *, whole: bool = False) -> None:
        self.n, self.size, self.seed, self.epoch = n, size, seed, 0
        self.taken = n - n % size if whole and n >= size else n

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.taken // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)[: self.taken].tolist()
        for start in range(0, self.taken, self.size):
            yield order[start : start + self.size]


def run_plan(
    plan: SeededPlan,
    loader: DataLoader[Batch],
    scored: DataLoader[Batch] | None,
    run: Run,
    *,
    history: History,
    callbacks: Sequence[L.Callback],
    sections: Sequence[str],
    epochs: int,
    gradient_clip: float = 0.0,
    checkpoint: Path | None = None,
    called: str = "",
) -> None:
    """Train until so many epochs are done.

    Parameters
    ----------
    plan
        What is trained, in the mode that it is to be trained in.
    loader, scored
        Batches of training and of validation, where there is one.
    run
        Devices, and where checkpoints go.
    history
        Notes every epoch.
    callbacks
        What has a say in it, beside what every training has.
    sections
        Names of what it learns from, for messages.
    epochs
        In all, those of `checkpoint` included.
    gradient_clip
        Norm that gradients are clipped by; 0: they are not.
    checkpoint
        To go on from.
    called
        Name of its bar; "" for none.
    """
    everything: list[L.Callback] = [history, EndIfDiverged(history, plan, sections), *callbacks]
    if called:
        everything.append(EpochProgress(history, called))
    if run.checkpoint_dir is not None:
        everything.append(SaveLast(run.checkpoint_dir / CHECKPOINT, run.checkpoint_every))
    trainer = run.devices.trainer(
        max_epochs=epochs,
        gradient_clip_val=gradient_clip or None,
        callbacks=everything,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=run.checkpoint_dir is not None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(plan, loader, scored, ckpt_path=checkpoint)
