"""Training: sections in, a trained network out."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, Sampler

from .._progress import over_sections
from ..chunks import spatial_chunks
from ..confidence import Confidence, feature_statistics, optical_density
from ..config import Config
from ..expression import ExpressionScale
from ..features import feature_shape, is_frozen, open_features
from ..linear import LinearPath, linear_features
from ..nn import Batch, Encoder, Ensemble, HGGEPNetwork, PublishedNetwork, averaged
from ..patches import fields_of_view, read_patches, say_if_coarse
from ..weights import load_weights, locate_weights
from .checkpoint import (
    CHECKPOINT,
    FURTHER,
    WholeCheckpoints,
    checkpoint_to_resume,
    identity_of,
    last_checkpoint,
    require_resume_is_meant,
)
from .cross_fit import Weights, cross_fit
from .data import SectionData, array_store, section_data
from .devices import Devices
from .lightning_manners import interruptible, quiet
from .plan import EpochProgress, History, KeepBest, StopEarly, TrainingPlan, without_frozen_encoder

if TYPE_CHECKING:
    from ..section import Section

logger = logging.getLogger(__name__)


@dataclass
class Trained:
    """What training hands over: the network, the configuration as used, a record per epoch; what cross-fitting adds.

    The record is that of an ensemble's first network.
    """

    network: HGGEPNetwork | Ensemble | PublishedNetwork
    config: Config
    history: list[dict[str, float]]
    linear: LinearPath | None = None
    confidence: Confidence | None = None


def train(
    sections: Sequence["Section"],
    genes: Sequence[str],
    scale: ExpressionScale,
    config: Config,
    *,
    encoder: Encoder | str | None,
    mpp: float | None,
    weights: str | Path | None,
    held_out: Sequence[np.ndarray] | None,
    seed: int,
    devices: Devices,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    resume: bool,
    progress: bool,
) -> Trained:
    """Train a network on sections; see `hggep_sc.tl.fit` for the parameters.

    `encoder` is what `make_encoder` made, or None for the released network, which has its own and takes `weights`;
    `held_out` marks per section the spots that are validated on, `mpp` is the scale to train at.
    """
    require_resume_is_meant(checkpoint_dir, resume)
    device, progress = devices.own, progress and devices.rank == 0
    network_class = PublishedNetwork if encoder is None else HGGEPNetwork
    if not is_frozen(encoder, config):
        config = config.replace(ensemble=1)  # networks that share no encoder are no ensemble of ours
    with isolate_rng(), quiet():
        torch.manual_seed(seed)
        fields = [fields_of_view(config, mpp, section.mpp) for section in sections]
        masks: Sequence[np.ndarray | None] = held_out if held_out is not None else [None for _ in sections]
        unseen = np.empty(0, dtype=np.uint8)  # counts are checked before images are read, which takes longer
        data = [
            section_data(section, genes, scale, unseen, network_class.positions(section), mask)
            for section, mask in zip(sections, masks, strict=True)
        ]
        with _seen(sections, fields, encoder, config, network_class, device, progress) as stores:
            data = [replace(part, seen=seen) for part, seen in zip(data, stores, strict=True)]
            if config.linear and config.cross_fit and is_frozen(encoder, config):
                data = [
                    replace(
                        part,
                        linear=linear_features(
                            section, part.seen.mean(axis=1), views, config, looks=not isinstance(encoder, str)
                        ),
                    )
                    for part, section, views in zip(data, sections, fields, strict=True)
                ]
            identity = identity_of(data, genes, config, held_out, seed, devices.number)
            checkpoint = checkpoint_to_resume(checkpoint_dir, resume, identity)
            training, validation = _split(data, held_out)
            fit = partial(
                _fit_network,
                config=config,
                n_genes=len(genes),
                weights=weights,
                devices=devices,
                checkpoint_every=checkpoint_every,
            )
            # one that learns is changed by a fit
            fresh = deepcopy(encoder) if config.cross_fit and not is_frozen(encoder, config) else encoder
            trained = fit(
                training,
                validation,
                encoder=encoder,
                seed=seed,
                checkpoint=checkpoint,
                checkpoint_dir=checkpoint_dir,
                progress=progress,
            )
            epochs = _best_epoch(trained.history) if validation else config.epochs
            turns = count(1)

            def fit_another(kept: list[SectionData], seed: int, progress: bool = False) -> HGGEPNetwork:
                own = fresh if is_frozen(encoder, config) else deepcopy(fresh)
                folder = None if checkpoint_dir is None else checkpoint_dir / f"{FURTHER}_{next(turns)}"
                checkpoint = last_checkpoint(folder)  # of this fit, as the folder around it
                network = fit(
                    kept,
                    [],
                    encoder=own,
                    seed=seed,
                    stop_after=epochs,
                    checkpoint=checkpoint,
                    checkpoint_dir=folder,
                    progress=progress,
                ).network
                assert isinstance(network, HGGEPNetwork)  # as the one that it stands beside or in for
                return network

            seeds = _seeds(seed, config.ensemble)
            if isinstance(trained.network, HGGEPNetwork):
                others = [fit_another(training, another, progress) for another in seeds[1:]]
                trained.network = averaged([trained.network, *others])
            if config.cross_fit and not isinstance(trained.network, PublishedNetwork):
                linear = LinearPath.fit(training, seed) if training[0].linear is not None else None

                def refit(kept: list[SectionData]) -> tuple[HGGEPNetwork | Ensemble, LinearPath | None]:
                    network = averaged([fit_another(kept, another) for another in seeds])
                    path = None if linear is None else LinearPath.fit(kept, seed, linear.alpha)
                    return network.to(device), path

                held = cross_fit(training, refit, scale, seed=seed, progress=progress)
                weights_of_paths, linear = devices.agreed((Weights.of(held), linear))
                if weights_of_paths is None:
                    logger.warning(
                        "nothing was learnt that holds in training sections which were left out (in turn): the "
                        "prediction is the network's, as training left it"
                    )
                    weights_of_paths = Weights(network=1.0, linear=0.0)
                trained.network.scale_output(weights_of_paths.network)
                trained.linear = None if linear is None else linear.scaled(weights_of_paths.linear)
                learnt = {part.name for part in training}
                looked_at = [] if isinstance(encoder, str) else zip(sections, fields, strict=True)
                densities = [optical_density(s, min(f), config.patch_size) for s, f in looked_at if s.name in learnt]
                trained.confidence = devices.agreed(
                    Confidence.of(
                        trained.network.to(device),
                        training,
                        held,
                        weights_of_paths,
                        scale=scale,
                        stain=np.array(densities).reshape(-1, 3),
                    )
                )
    return trained


def _fit_network(
    training: list[SectionData],
    validation: list[SectionData],
    *,
    config: Config,
    n_genes: int,
    encoder: Encoder | str | None,
    weights: str | Path | None,
    seed: int,
    devices: Devices,
    checkpoint_every: int,
    stop_after: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_dir: Path | None = None,
    progress: bool = False,
) -> Trained:
    """Train a network on sections' data; nothing else has a say.

    `stop_after` so many epochs; the schedule is that of `config.epochs` all the same.
    """
    torch.manual_seed(seed)
    training, config, start = _center(training, config, seed)
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
            groups=(training[0].seen.shape[-1],) if isinstance(encoder, str) else encoder.groups,
            n_fields=1 if isinstance(encoder, str) else len(config.fields_px),
        )
        network.start_from(*start)
        if config.standardize:
            network.standardise_features(*feature_statistics(network.to(devices.own), training))
    history = _run(
        network,
        training,
        validation,
        config,
        seed=seed,
        devices=devices,
        stop_after=config.epochs if stop_after is None else stop_after,
        checkpoint=checkpoint,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    # of processes that hold other chunks, statistics of a backbone's batches differ
    learnt, history = devices.agreed((without_frozen_encoder(network, network.state_dict()), history))
    network.load_state_dict(learnt, strict=False)
    return Trained(network.eval(), config, history)


def _seeds(seed: int, n: int) -> list[int]:
    """Return a seed for each network of an ensemble, the fit's own first."""
    return [seed, *map(int, np.random.SeedSequence(seed).generate_state(n - 1))]


def _best_epoch(history: list[dict[str, float]]) -> int:
    """Return for how many epochs the network that validation kept was trained."""
    return int(np.argmax([record["validation_pcc"] for record in history])) + 1


@contextmanager
def _seen(
    sections: Sequence["Section"],
    fields: Sequence[tuple[float, ...]],
    encoder: Encoder | str | None,
    config: Config,
    network_class: type[HGGEPNetwork] | type[PublishedNetwork],
    device: torch.device,
    progress: bool,
) -> Iterator[list[np.ndarray]]:
    """Give what is learnt from, per section: patches; features where the encoder is frozen."""
    size = config.patch_size
    watched = over_sections(sections, "images", progress)
    if not is_frozen(encoder, config):
        shapes = [(len(s.xy), len(f), 3, size, size) for s, f in zip(sections, fields, strict=True)]
        with array_store(shapes, np.uint8) as stores:
            for section, views, store in zip(watched, fields, stores, strict=True):
                say_if_coarse(section, views, size)
                with section.open_image() as image:
                    read_patches(image, network_class.centres(section.xy), views, size, out=store)
            yield stores
        return
    assert encoder is not None  # the released network is not frozen
    held = [feature_shape(section, encoder, config) for section in sections]
    if len({shape[1:] for shape in held}) > 1:
        lengths = ", ".join(f"{s.name!r}: {shape[-1]}" for s, shape in zip(sections, held, strict=True))
        raise ValueError(f"obsm[{encoder!r}] has embeddings of different lengths: {lengths}")
    with array_store(held, np.float32) as stores:
        for section, views, store in zip(watched, fields, stores, strict=True):
            with open_features(section, encoder, views, config, device=device) as features:
                for spots in spatial_chunks(section.xy, config.chunk_spots):
                    store[spots] = features(spots).cpu().numpy()
        yield stores


def _split(
    data: list[SectionData], held_out: Sequence[np.ndarray] | None
) -> tuple[list[SectionData], list[SectionData]]:
    """Training and validation data: the same sections, with other spots observed."""
    if held_out is None:
        return data, []
    training = [replace(d, observed=d.observed & ~mask) for d, mask in zip(data, held_out, strict=True)]
    validation = [replace(d, observed=d.observed & mask) for d, mask in zip(data, held_out, strict=True)]
    return [d for d in training if d.observed.any()], [d for d in validation if d.observed.any()]


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
        raise ValueError(f"training needs at least two spots with counts, found {len(targets)}")
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


class _EpochOrder(Sampler[int]):
    """A process's share of the chunks, in an order that depends on (seed, epoch) alone; Lightning calls `set_epoch`.

    The processes take turns; where they do not come out even, the last take chunks of the epoch's start once more.
    """

    def __init__(self, n: int, seed: int, devices: Devices) -> None:
        self.n, self.seed, self.devices, self.epoch = n, seed, devices, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.devices.number)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        even = np.resize(order, len(self) * self.devices.number)
        return iter(even[self.devices.rank :: self.devices.number].tolist())


def _run(
    network: HGGEPNetwork | PublishedNetwork,
    training: list[SectionData],
    validation: list[SectionData],
    config: Config,
    *,
    seed: int,
    devices: Devices,
    stop_after: int,
    checkpoint: Path | None,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    progress: bool,
) -> list[dict[str, float]]:
    chunks = _Chunks(training, config.chunk_spots)
    loader = DataLoader(chunks, batch_size=None, sampler=_EpochOrder(len(chunks), seed, devices))
    scored = DataLoader(_Chunks(validation, config.chunk_spots), batch_size=None) if validation else None
    history = History()
    callbacks: list[L.Callback] = [history]
    if validation:
        callbacks += [KeepBest(network), StopEarly("validation_pcc", mode="max", patience=config.patience)]
    if progress:
        callbacks.append(EpochProgress(history))
    if checkpoint_dir is not None:
        callbacks.append(
            ModelCheckpoint(
                checkpoint_dir,
                filename=Path(CHECKPOINT).stem,
                every_n_epochs=checkpoint_every,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    trainer = devices.trainer(
        max_epochs=stop_after,
        gradient_clip_val=config.gradient_clip or None,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=checkpoint_dir is not None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    plan = TrainingPlan(network.train(), config, seed)  # Lightning keeps the mode that it finds
    with interruptible(checkpoint_dir):
        trainer.fit(plan, loader, scored, ckpt_path=checkpoint)
    return history.records
