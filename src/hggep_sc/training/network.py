"""Training of one network: sections' data in, a trained network out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import Config
from ..encoders.weights import load_weights, locate_weights
from ..errors import InputError
from ..features.encoders import Eye
from ..nn import Batch, Encoder, HGGEPNetwork, PublishedNetwork
from ..prediction.chunks import spatial_chunks
from .checkpoint import CHECKPOINT, WholeCheckpoints
from .confidence import feature_statistics
from .data import SectionData
from .devices import Devices
from .plan import (
    EndIfDiverged,
    EpochProgress,
    History,
    KeepBest,
    SaveLast,
    StopEarly,
    TrainingPlan,
    without_frozen_encoder,
)
from .run import Run


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A trained network, the configuration as used, a record per epoch."""

    network: HGGEPNetwork | PublishedNetwork
    config: Config
    history: list[dict[str, float]]


def fit_network(
    training: list[SectionData],
    validation: list[SectionData],
    *,
    config: Config,
    n_genes: int,
    encoder: Eye | None,
    weights: str | Path | None,
    run: Run,
    stop_after: int | None = None,
    checkpoint: Path | None = None,
    called: str = "",
) -> FittedNetwork:
    """Train a network on sections' data; nothing else has a say.

    `stop_after` so many epochs; the schedule is that of `config.epochs` all the same. It goes on from `checkpoint`.
    `called` is the name of its bar; "" for none.
    """
    torch.manual_seed(run.seed)
    training, config, start = _center(training, config, run.seed)
    network: HGGEPNetwork | PublishedNetwork
    if encoder is None:
        network = PublishedNetwork(n_genes)
        if (path := locate_weights(weights)) is not None:
            load_weights(network.backbone, path)
    else:
        network = HGGEPNetwork(
            config,
            n_genes,
            encoder=encoder if isinstance(encoder, Encoder) else None,
            groups=encoder.groups if isinstance(encoder, Encoder) else (training[0].seen.shape[-1],),
            n_fields=len(config.fields_px) if isinstance(encoder, Encoder) else 1,
        )
        network.start_from(*start)
        if config.standardize:
            network.standardise_features(*feature_statistics(network.to(run.devices.own), training))
    history = _trained(
        network,
        training,
        validation,
        config,
        run,
        stop_after=config.epochs if stop_after is None else stop_after,
        checkpoint=checkpoint,
        called=called,
    )
    # of processes that hold other chunks, statistics of a backbone's batches differ
    learnt, history = run.devices.agreed((without_frozen_encoder(network, network.state_dict()), history))
    network.load_state_dict(learnt, strict=False)
    return FittedNetwork(network.eval(), config, history)


def _center(
    training: list[SectionData], config: Config, seed: int
) -> tuple[list[SectionData], Config, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """Centre the targets per section and find their leading principal components, on the training spots alone.

    Returns
    -------
    The sections with centred targets, the configuration with as many components as the data have, and what the
    network starts from: gene means, basis, mean counts.
    """
    section_means = [d.expression[d.observed].mean(0) for d in training]
    if config.center_sections:
        gene_mean = np.mean(section_means, axis=0)
        training = [
            replace(d, expression=d.expression - mean + gene_mean)
            for d, mean in zip(training, section_means, strict=True)
        ]
    targets = np.concatenate([d.expression[d.observed] for d in training])
    if len(targets) < 2:
        raise InputError(f"training needs at least two spots with counts, found {len(targets)}")
    gene_mean = targets.mean(0)
    basis = None
    if config.n_components is not None:
        from sklearn.decomposition import PCA

        n_components = min(config.n_components, *targets.shape)
        basis = PCA(n_components, random_state=seed).fit(targets - gene_mean).components_
        config = config.replace(n_components=n_components)
    rates = [d.counts[d.observed] / d.size_factors[d.observed, None] for d in training]
    start = (
        torch.from_numpy(gene_mean.astype(np.float32)),
        None if basis is None else torch.from_numpy(basis.astype(np.float32)),
        torch.from_numpy(np.concatenate(rates).mean(0).astype(np.float32)),
    )
    return training, config, start


class _Chunks(Dataset[Batch]):
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


def _trained(
    network: HGGEPNetwork | PublishedNetwork,
    training: list[SectionData],
    validation: list[SectionData],
    config: Config,
    run: Run,
    *,
    stop_after: int,
    checkpoint: Path | None,
    called: str,
) -> list[dict[str, float]]:
    chunks = _Chunks(training, config.chunk_spots)
    loader = DataLoader(
        chunks, batch_size=None, sampler=EpochOrder(len(chunks), run.seed, run.devices, config.epoch_chunks)
    )
    scored = DataLoader(_Chunks(validation, config.chunk_spots), batch_size=None) if validation else None
    history = History()
    callbacks: list[L.Callback] = [history, EndIfDiverged(history, network, config, [data.name for data in training])]
    if validation:
        callbacks += [KeepBest(network), StopEarly("validation_pcc", mode="max", patience=config.patience)]
    if called:
        callbacks.append(EpochProgress(history, called))
    if run.checkpoint_dir is not None:
        callbacks.append(SaveLast(run.checkpoint_dir / CHECKPOINT, run.checkpoint_every))
    trainer = run.devices.trainer(
        max_epochs=stop_after,
        gradient_clip_val=config.gradient_clip or None,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=run.checkpoint_dir is not None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    plan = TrainingPlan(network.train(), config, run.seed)  # Lightning keeps the mode that it finds
    try:
        trainer.fit(plan, loader, scored, ckpt_path=checkpoint)
    except torch.OutOfMemoryError as error:
        most = max(len(spots) for _, spots in chunks.chunks)
        if most > 1:
            error.add_note(
                f"Training took up to {most} spots at once: config={{'chunk_spots': {most // 2}}} takes half as many"
            )
        raise
    return history.records
