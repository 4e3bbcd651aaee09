"""Training: sections in, a trained network out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import Config
from ..expression import ExpressionScale
from ..nn import Batch, HGGEPNetwork, PublishedNetwork, build
from ..patches import fields_of_view, read_patches, say_if_coarse
from ..weights import load_weights, locate_weights, pixel_statistics
from .checkpoint import CHECKPOINT, checkpoint_to_resume, identity_of
from .data import (
    SectionData,
    patch_store,
    section_data,
    spatial_chunks,
)
from .lightning_manners import interruptible, quiet
from .plan import EpochProgress, History, KeepBest, StopEarly, TrainingPlan

if TYPE_CHECKING:
    from ..section import Section


@dataclass
class Trained:
    """What training hands over: the network, the configuration as used, and a record per epoch."""

    network: HGGEPNetwork | PublishedNetwork
    config: Config
    history: list[dict[str, float]]


def train(
    sections: Sequence["Section"],
    genes: Sequence[str],
    scale: ExpressionScale,
    config: Config,
    *,
    mpp: float | None,
    weights: str | Path | None,
    held_out: Sequence[np.ndarray] | None,
    seed: int,
    device: torch.device,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    resume: bool,
    progress: bool,
) -> Trained:
    """Train a network on sections; see `hggep_sc.tl.fit` for the parameters.

    `held_out` marks per section the spots that are validated on, `mpp` is the scale to train at.
    """
    weights_file = locate_weights(weights)
    with isolate_rng(), quiet():
        torch.manual_seed(seed)
        network_class = PublishedNetwork if config.preset == "published" else HGGEPNetwork
        size = config.patch_size
        fields = [fields_of_view(config, mpp, section.mpp) for section in sections]
        shapes = [(len(s.xy), len(f), 3, size, size) for s, f in zip(sections, fields, strict=True)]
        masks: Sequence[np.ndarray | None] = held_out if held_out is not None else [None for _ in sections]
        with patch_store(shapes) as stores:
            data = [
                section_data(section, genes, scale, store, network_class.positions(section), mask)
                for section, store, mask in zip(sections, stores, masks, strict=True)
            ]
            for section, store, views in zip(sections, stores, fields, strict=True):
                say_if_coarse(section, views, size)
                with section.open_image() as image:
                    read_patches(image, network_class.centres(section.xy), views, size, out=store)
            identity = identity_of(data, genes, config, held_out, seed)
            checkpoint = checkpoint_to_resume(checkpoint_dir, resume, identity)
            training, validation = _split(data, held_out)
            training, config, start = _center(training, config, seed)
            network = build(config, len(genes))
            if weights_file is not None:
                load_weights(network.backbone, weights_file)
            if isinstance(network, HGGEPNetwork):
                network.start_from(*start)
                if weights_file is not None:
                    network.normalise_pixels(*pixel_statistics(weights_file))
            history = _run(
                network,
                training,
                validation,
                config,
                seed=seed,
                device=device,
                checkpoint=checkpoint,
                checkpoint_dir=checkpoint_dir,
                checkpoint_every=checkpoint_every,
                progress=progress,
            )
    return Trained(network.eval(), config, history)


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
    """An order of the chunks that depends on (seed, epoch) alone; Lightning calls `set_epoch`."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.n).tolist())


def _run(
    network: HGGEPNetwork | PublishedNetwork,
    training: list[SectionData],
    validation: list[SectionData],
    config: Config,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    progress: bool,
) -> list[dict[str, float]]:
    chunks = _Chunks(training, config.chunk_spots)
    loader = DataLoader(chunks, batch_size=None, sampler=_EpochOrder(len(chunks), seed))
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
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true",
        max_epochs=config.epochs,
        gradient_clip_val=config.gradient_clip or None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=checkpoint_dir is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    plan = TrainingPlan(network, config, seed)
    with interruptible():
        trainer.fit(plan, loader, scored, ckpt_path=checkpoint)
    return history.records
