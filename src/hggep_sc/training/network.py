"""Training of one network: sections' data in, a trained network out."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..config import Config
from ..encoders.weights import load_weights, locate_weights
from ..errors import InputError
from ..features.encoders import Eye
from ..nn import Encoder, HGGEPNetwork, PublishedNetwork
from ..nn.ensemble import Seen
from .confidence import feature_statistics
from .data import SectionData
from .loop import Chunks, EpochOrder, run_plan
from .plan import History, KeepBest, StopEarly, TrainingPlan, without_frozen_encoder
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
    sees: Seen | None = None,
    stop_after: int | None = None,
    checkpoint: Path | None = None,
    called: str = "",
) -> FittedNetwork:
    """Train a network on sections' data; nothing else has a say.

    `sees` tells the groups of features that it is given; None for all. It stops after `stop_after` epochs; the
    schedule is that of `config.epochs` all the same. It goes on from `checkpoint`. `called` is the name of its bar; ""
    for none.
    """
    torch.manual_seed(run.seed)
    groups = groups_of(encoder, training)
    if sees is not None:
        columns, groups = sees.columns(groups), groups[sees.first : sees.end]
        training, validation = ([_narrowed(data, columns) for data in of] for of in (training, validation))
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
            groups=groups,
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


def groups_of(encoder: Eye | None, data: list[SectionData]) -> tuple[int, ...]:
    """Return the sizes of the groups of features; of embeddings it is one."""
    return encoder.groups if isinstance(encoder, Encoder) else (data[0].seen.shape[-1],)


def _narrowed(data: SectionData, columns: slice) -> SectionData:
    return replace(data, seen=data.seen[..., columns]) if data.holds_features else data


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
    chunks = Chunks(training, config.chunk_spots)
    loader = DataLoader(
        chunks, batch_size=None, sampler=EpochOrder(len(chunks), run.seed, run.devices, config.epoch_chunks)
    )
    scored = DataLoader(Chunks(validation, config.chunk_spots), batch_size=None) if validation else None
    history = History()
    plan = TrainingPlan(network.train(), config, run.seed)  # Lightning keeps the mode that it finds
    stops = [KeepBest(network), StopEarly("validation_pcc", mode="max", patience=config.patience)] if validation else []
    try:
        run_plan(
            plan,
            loader,
            scored,
            run,
            history=history,
            callbacks=stops,
            sections=[data.name for data in training],
            epochs=stop_after,
            gradient_clip=config.gradient_clip,
            checkpoint=checkpoint,
            called=called,
        )
    except torch.OutOfMemoryError as error:
        most = max(len(spots) for _, spots in chunks.chunks)
        if most > 1:
            error.add_note(
                f"Training took up to {most} spots at once: config={{'chunk_spots': {most // 2}}} takes half as many"
            )
        raise
    return history.records
