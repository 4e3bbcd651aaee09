"""What the published rivals share: reading, training, prediction and storage; each adds its network and settings."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..._settings import settings
from ...config import BaseConfig, Config, Normalize, plain
from ...features.describe import PLAIN, View
from ...features.encoders import AUTO, Eye, ObsmEncoder, make_encoder
from ...features.patches import (
    fields_of_view,
    model_mpp,
    model_reduction,
    say_if_scale_differs,
    say_if_spacing_differs,
    spots_per_batch,
    training_spacing,
)
from ...features.store import describe_patches, describe_section, require_length
from ...nn import Batch, Output, average_views
from ...prediction.chunks import predict_in_chunks, spots_at_once
from ...prediction.finite import require_finite_model, require_finite_prediction
from ...runtime.device import mixed_precision, resolve_device, threads_of_torch
from ...runtime.progress import over_sections
from ...runtime.random_state import own_random_state
from ...runtime.validators import flag, number, whole, whole_or_none
from ...section import Section, require_counts, require_plausible
from ...section.expression import ExpressionScale
from ...section.fingerprint import Fingerprint
from ...storage.checkpoint import Checkpoint, Parts
from ...storage.models import identity
from ...training.checkpoint import checkpoint_to_resume, folder_of_fit, identity_of, last_checkpoint
from ...training.data import SectionData, section_data
from ...training.devices import Devices
from ...training.lightning_manners import interruptible, quiet
from ...training.loop import Chunks, EpochOrder, run_plan
from ...training.plan import History, SeededPlan
from ...training.read import held_patches
from ...training.run import Run
from ..encoder import encoder_entry, required_encoder
from ..fitted import FittedModel, known_of_fit
from ..genes import NAMED, GenesBy, training_genes

CHECKED: dict[Any, Callable[[str, Any], Any]] = {bool: flag, int: whole, float: partial(number, least=0)}
SHARED = ("patch_size", "fields_um", "fields_px", "normalize", "target_sum", "log_base", "epochs", "chunk_spots")


@dataclass(frozen=True)
class RivalConfig(BaseConfig):
    """Settings that all rivals have; the defaults of each are those of its paper and code.

    Parameters
    ----------
    normalize
        Total that counts are scaled by: the spot's full library, or its counts over the predicted genes (panel).
    target_sum
        Counts per spot after scaling.
    log_base
        Base of the logarithm: "e" or "10".
    patch_size
        Side of the square patch that the network sees, px.
    fields_um
        Side of the tissue that it shows, um, in a tuple of one. None: `fields_px` at the training sections' scale.
    fields_px
        Side of the tissue that it shows, px of the image, in a tuple of one.
    epochs
        Times that all training spots are seen.
    learning_rate
        Of the optimiser.
    chunk_spots
        Sections with more spots are handled in compact chunks of at most this many, where a method sees a section as a
        whole. None: always whole; in prediction fewer, where free memory does not hold so many.
    vit_heads
        Attention heads, by which the memory of a section is reckoned.
    """

    called: ClassVar[str] = "a rival's config"

    normalize: Normalize = "panel"
    target_sum: float = 1e4
    log_base: Literal["e", "10"] = "10"
    patch_size: int = 112
    fields_um: tuple[float, ...] | None = None
    fields_px: tuple[float, ...] = (112.0,)
    epochs: int = 100
    learning_rate: float = 1e-5
    chunk_spots: int | None = None
    vit_heads: int = 16

    def __post_init__(self) -> None:
        for name, value in self.shared.to_dict().items():  # as checked there
            if name in SHARED:
                object.__setattr__(self, name, value)
        for field in fields(self):
            if field.type in CHECKED and field.name not in SHARED:
                value = CHECKED[field.type](f"config.{field.name}", plain(getattr(self, field.name)))
                object.__setattr__(self, field.name, value)
        if len(self.fields_px) != 1:
            raise ValueError(f"config.fields_px: a rival has one field of view, not {self.fields_px}")
        number("config.learning_rate", self.learning_rate, above=0, most=1e3)

    @property
    def shared(self) -> Config:
        """The settings that HGGEP has too, checked by its configuration."""
        return Config(**{name: getattr(self, name) for name in SHARED})


def n_features_of(data: Sequence[SectionData]) -> int | None:
    """Return how many features another encoder gives of a spot; None where sections hold patches."""
    return data[0].seen.shape[-1] if data[0].holds_features else None


class RivalNetwork(Protocol):
    """What a rival's network has to do; a `torch.nn.Module`."""

    def encode(self, patches: Tensor) -> Tensor:
        """See each patch by itself: (N, 1, 3, S, S) uint8, axes (spot, field, channel, row, column), to (N, ...)."""

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict from what `encode` returned, or another encoder's (N, D), and positions (N, 2)."""

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is minimised as "loss", and its terms; `batch` has patches, or another encoder's features."""


class RivalPlan(SeededPlan):
    """How a rival is trained: its own loss, by its own optimiser."""

    def __init__(
        self, network: nn.Module, config: RivalConfig, seed: int, optimiser: Callable[[Iterable[nn.Parameter]], Any]
    ) -> None:
        super().__init__(seed)
        self.network, self.config, self._optimiser = network, config, optimiser

    def configure_optimizers(self) -> Any:
        return self._optimiser([parameter for parameter in self.network.parameters() if parameter.requires_grad])

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.network.loss(batch, self.randomness(step))  # type: ignore[operator]  # a RivalNetwork


class Rival(FittedModel):
    """A published predictor, as its paper and code specify it; made by `hggep_sc.tl.fit(method=...)` or `load`.

    Attributes
    ----------
    method
        Its name in `hggep_sc.tl.fit`.
    takes
        Keywords of `fit` and of `predict`.
    genes
        Names of the predicted genes, in the order of the outputs.
    genes_by
        Rule by which they were chosen, or "names".
    config
        Every setting, as used.
    network
        The trained network.
    encoder
        What sees the spots in place of the network's own backbone; None without.
    scale
        The expression scale of the predictions.
    mpp
        Scale that it was trained at, um per px; None where it was not known.
    reduction
        Full-resolution px per px of the image that it was trained at: above 1 where that was a reduced copy.
    spacing_um
        Least and most um from spot to spot in the training sections; None where they are not known.
    history
        One row per epoch: the loss and its terms.
    seed
        Seed of the fit; None for a published checkpoint.
    """

    method: ClassVar[str]
    configured_by: ClassVar[type[RivalConfig]]
    takes: ClassVar[frozenset[str]] = frozenset(
        {"config", "genes", "genes_by", "seed", "device", "checkpoint_dir", "checkpoint_every", "resume", "progress"}
        | {"batch_size", "chunk_spots", "advance", "checkpoint"}
    )
    sees_sections: ClassVar[bool] = True  # whether it sees all spots of a section together, else each by itself
    own_encoder: ClassVar[bool] = True  # that a fit without encoder= sees through
    views: ClassVar[tuple[View, ...]] = PLAIN  # of every patch, over which predictions are averaged
    confidence: ClassVar[None] = None  # that is HGGEP's

    def __init__(
        self,
        network: nn.Module,
        config: RivalConfig,
        genes: Sequence[str],
        *,
        mpp: float | None,
        fingerprint: Fingerprint,
        history: Sequence[dict[str, float]] = (),
        seed: int | None = None,
        genes_by: str | None = None,
        encoder: Eye | None = None,
        reduction: float = 1.0,
        spacing_um: tuple[float, float] | None = None,
    ) -> None:
        self.network: Any = network.eval()  # a RivalNetwork
        require_finite_model(network.state_dict())
        self.config = config
        self.genes = list(genes)
        self.scale = self.scale_of(config)
        self.mpp, self.reduction, self.spacing_um = mpp, reduction, spacing_um
        self.fingerprint = fingerprint
        self.history = pd.DataFrame(list(history))
        self.seed, self.genes_by = seed, genes_by
        self.encoder = encoder
        self.embeddings = encoder.slot if isinstance(encoder, ObsmEncoder) else None

    # what a rival is

    @classmethod
    @abstractmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> nn.Module:
        """Build the network: with its own backbone, or for `n_features` of another encoder."""

    @classmethod
    @abstractmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """Return what Lightning takes as an optimiser, with its schedule."""

    @classmethod
    def fitted_to(cls, config: RivalConfig, sections: Sequence[Section]) -> RivalConfig:
        """Return the settings with what follows from the training sections."""
        return config

    @classmethod
    def noting(cls, config: RivalConfig, data: list[SectionData], seed: int) -> RivalConfig:
        """Return the settings with what follows from the training patches."""
        return config

    @classmethod
    def scale_of(cls, config: RivalConfig) -> ExpressionScale:
        """Return the expression scale that is learnt and predicted."""
        return ExpressionScale(config.normalize, config.target_sum, config.log_base)

    @classmethod
    def target(cls, section: Section, data: SectionData, config: RivalConfig) -> np.ndarray:
        """Return what the network learns of each spot, float32 (n_spots, n_genes): expression on the scale."""
        return data.expression

    def on_scale(self, predicted: np.ndarray) -> np.ndarray:
        """Bring what the network predicts, (n_spots, n_genes), to the expression scale."""
        return predicted

    @classmethod
    def learn(
        cls,
        data: list[SectionData],
        config: RivalConfig,
        n_genes: int,
        *,
        weights: str | Path | None,
        run: Run,
    ) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train a network on sections; return it and a record per epoch.

        `data` hold patches, or another encoder's features.
        """
        network = cls.untrained(config, n_genes, n_features_of(data))
        return network, cls.train(network, data, config, run)

    @classmethod
    def train(
        cls,
        network: nn.Module,
        data: list[SectionData],
        config: RivalConfig,
        run: Run,
        *,
        callbacks: Sequence[L.Callback] = (),
        epochs: int | None = None,
        called: str = "fit",
    ) -> list[dict[str, float]]:
        """Train a network for all epochs, or for so many, from the last checkpoint on; return a record of each."""
        history = History()
        run_plan(
            RivalPlan(network.train(), config, run.seed, partial(cls.optimiser, config)),
            cls.batches(data, config, run),
            None,
            run,
            history=history,
            callbacks=callbacks,
            sections=[part.name for part in data],
            epochs=config.epochs if epochs is None else epochs,
            checkpoint=last_checkpoint(run.checkpoint_dir),
            called=called if run.progress else "",
        )
        return history.records

    @classmethod
    def batches(cls, data: list[SectionData], config: RivalConfig, run: Run) -> "DataLoader[Batch]":
        """Return an epoch's batches: a section each, or a compact chunk of it, in an order drawn for every epoch."""
        chunks = Chunks(data, config.chunk_spots)
        return DataLoader(chunks, batch_size=None, sampler=EpochOrder(len(chunks), run.seed, run.devices))

    # fit and predict

    @classmethod
    def fit(
        cls,
        sections: Sequence[Section],
        config: RivalConfig,
        *,
        genes: Iterable[str] | str | int | None = None,
        genes_by: GenesBy = "moran",
        encoder: str | nn.Module = AUTO,
        weights: str | Path | None = "pretrained",
        seed: int = 0,
        device: str = "auto",
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        progress: bool | None = None,
    ) -> Self:
        """Train on sections; see `hggep_sc.tl.fit` for the parameters."""
        targets, seed = Devices.of(device, 1, "auto", 1), int(seed)
        require_counts(sections)
        chosen, by = training_genes(sections, genes, genes_by)
        config = cls.fitted_to(config, sections)
        mpp, reduction, spacing_um = model_mpp(sections), model_reduction(sections), training_spacing(sections)
        run = Run(
            seed,
            targets,
            None if checkpoint_dir is None else Path(checkpoint_dir),
            checkpoint_every,
            resume,
            progress=settings.progress if progress is None else progress,
        )
        own = isinstance(encoder, str) and encoder == AUTO
        with (
            folder_of_fit(run.checkpoint_dir, resume, writes=True),
            own_random_state(seed),
            threads_of_torch(),
            torch.inference_mode(False),
            torch.enable_grad(),  # also where the caller goes without
            interruptible(run.checkpoint_dir),
            quiet(),
        ):
            eye = None if own else make_encoder(encoder, config.shared, weights, sections)
            data = cls._read(sections, chosen, config, mpp, reduction, eye, run)
            identity = identity_of(data, chosen, config, None, seed, 1) | {"method": cls.method}
            checkpoint_to_resume(run.checkpoint_dir, resume, identity, writes=True)  # refuses another fit's
            config = cls.noting(config, data, seed)
            torch.manual_seed(seed)
            network, history = cls.learn(data, config, len(chosen), weights=weights if own else None, run=run)
        return cls(
            network,
            config,
            chosen,
            mpp=mpp,
            fingerprint=Fingerprint.of(sections, chosen),
            history=history,
            seed=seed,
            genes_by=by,
            encoder=eye,
            reduction=reduction,
            spacing_um=spacing_um,
        )

    @classmethod
    def _read(
        cls,
        sections: Sequence[Section],
        genes: Sequence[str],
        config: RivalConfig,
        mpp: float | None,
        reduction: float,
        eye: Eye | None,
        run: Run,
    ) -> list[SectionData]:
        """Return what training holds of each section: its counts, and patches or another encoder's features."""
        scale, unseen = cls.scale_of(config), np.empty(0, dtype=np.uint8)
        # counts are checked before images are read, which takes longer
        data = [section_data(section, genes, scale, unseen, cls.positions(section, config)) for section in sections]
        for part, section in zip(data, over_sections(sections, "images", run.progress), strict=True):
            part.expression = cls.target(section, part, config)
            fields = fields_of_view(config, mpp, section.mpp, section.reduction / reduction)
            if eye is not None:
                part.seen = cls._features(section, eye, fields, config, run.devices.own)
                continue
            part.seen = held_patches(section, cls.centres(section.xy), fields, config.patch_size)
        return data

    @classmethod
    def _features(
        cls,
        section: Section,
        eye: Eye,
        fields: tuple[float, ...],
        config: RivalConfig,
        device: torch.device,
        **how: Any,
    ) -> np.ndarray:
        """Return another encoder's features of all spots, float32 (n_spots, 1, D)."""
        encoded = describe_section(section, eye, fields, config.patch_size, device=device, **how).encoded
        assert encoded is not None  # there is an encoder
        return encoded.reshape(len(encoded), 1, -1)

    @torch.inference_mode()
    @threads_of_torch()
    def predict(
        self,
        section: Section,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        chunk_spots: int | None = None,
        advance: Callable[[int], object] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict one section.

        Parameters
        ----------
        section
            Where the spots and the image are.
        device
            "auto", "cpu", "cuda", "cuda:1", "mps".
        batch_size
            Spots whose patches are seen at once; None for 64.
        chunk_spots
            Spots of a section that are seen together; None for as many as `config.chunk_spots` and free memory allow.
        advance
            Told how many more spots were read and encoded.
        checkpoint
            What is known of the section, and is not computed again; what comes to be known goes into it.

        Returns
        -------
        Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.

        Raises
        ------
        ValueError
            If `batch_size` or `chunk_spots` is below 1.
        ModelError
            If what is predicted is NaN or infinite.
        """
        whole_or_none("chunk_spots", chunk_spots)
        if self.embeddings is None:
            say_if_scale_differs(section, self.mpp, self.reduction)
        say_if_spacing_differs(section, self.spacing_um)
        target, at_once = resolve_device(device), spots_per_batch(batch_size)
        network = self.network.to(target)
        positions = torch.as_tensor(self.positions(section, self.config)).to(target)
        known, max_spots = (checkpoint or Checkpoint()).in_chunks(
            lambda: (
                spots_at_once(len(section.xy), self.config, target, name=section.name, chunk_spots=chunk_spots)
                if self.sees_sections
                else at_once
            )
        )
        features = self._described(section, target, at_once, known.features, advance)
        if self.sees_sections:
            expression, latent = predict_in_chunks(
                network,
                features,
                section.xy,
                positions,
                self.config,
                name=section.name,
                max_spots=max_spots,
                kept=known.predicted,
            )
        else:
            expression, latent = self._spot_by_spot(network, features, positions, at_once, target)
        expression = self.on_scale(expression)
        require_finite_prediction(section.name, expression, latent)
        return expression, latent

    @staticmethod
    def _spot_by_spot(
        network: RivalNetwork, features: np.ndarray, positions: Tensor, at_once: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict spots that do not see each other, some at a time."""
        whole: list[np.ndarray] = []
        for start in range(0, len(features), at_once):
            spots = slice(start, start + at_once)
            seen = torch.from_numpy(features[spots]).to(device)
            with mixed_precision(device):
                found = [value.float().cpu().numpy() for value in average_views(network, seen, positions[spots])]
            if not whole:
                whole = [np.empty((len(features), value.shape[1]), dtype=np.float32) for value in found]
            for of_all, value in zip(whole, found, strict=True):
                of_all[spots] = value
        expression, latent = whole  # a section has spots
        return expression, latent

    def _described(
        self,
        section: Section,
        device: torch.device,
        batch_size: int,
        kept: Parts,
        advance: Callable[[int], object] | None,
    ) -> np.ndarray:
        """Return what the network's own backbone, or another encoder, makes of all spots, (n_spots, views, ...)."""
        config, network = self.config, self.network
        fields = fields_of_view(config, self.mpp, section.mpp, section.reduction / self.reduction)
        how: dict[str, Any] = {"batch_size": batch_size, "device": device}
        if self.encoder is not None:
            if self.embeddings is not None:
                require_length(section, self.embeddings, network.n_features)
            return self._features(section, self.encoder, fields, config, kept=kept, advance=advance, **how)
        how |= {"views": self.views, "kept": kept, "advance": advance}
        return describe_patches(section, network.encode, self.centres, fields, config.patch_size, **how)

    @property
    def reads_image(self) -> bool:
        """Whether it looks at patches; not where it is given embeddings."""
        return self.embeddings is None

    @staticmethod
    def centres(xy: np.ndarray) -> np.ndarray:
        """Pixel positions that patches are centred on: rounded down, as the published codes have them."""
        return np.floor(xy)

    @classmethod
    def positions(cls, section: Section, config: RivalConfig) -> np.ndarray:
        """Positions of the spots that the network takes, (n_spots, 2); nothing where it looks at none."""
        return np.zeros((len(section.xy), 2), dtype=np.float32)

    # what is kept

    @cached_property
    def id(self) -> str:
        """Name of this trained model: a hash of its genes and of what was learnt."""
        seen_by = "" if self.encoder is None else self.encoder.id
        return identity("\n".join([self.method, *self.genes]) + seen_by, self.network.state_dict())

    def __repr__(self) -> str:
        n_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        sections = ", ".join(self.fingerprint.sections) or "none known"
        return (
            f"{type(self).__name__}({len(self.genes)} genes, id={self.id})\n"
            f"    {n_parameters / 1e6:.1f} M parameters; scale: {self.scale}\n"
            f"    trained on: {sections}; {len(self.history)} epochs, seed {self.seed}"
        )

    def _kept(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
        entries: dict[str, Any] = {"history": self.history.to_dict("records")}
        if self.encoder is not None:
            entries["encoder"] = encoder_entry(self.encoder, [self.network.n_features], self.config.patch_size)
        return entries, {"network": self.network.state_dict()}

    @property
    def _sees_through(self) -> Eye | None:
        return self.encoder

    @classmethod
    def _rebuild(
        cls,
        content: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        *,
        given: nn.Module | str | Path | None,
    ) -> Self:
        config, entry = cls.configured_by.from_dict(content["config"]), content.get("encoder")
        eye: Eye | None = None
        if entry is not None:
            eye = ObsmEncoder(entry["key"]) if "key" in entry else required_encoder(entry, given, config.shared)
        genes, n_features = content["genes"], None if entry is None else sum(entry["groups"])
        return cls(
            cls.filled(config, len(genes), n_features, tensors["network"]),
            config,
            genes,
            history=content["history"],
            encoder=eye,
            **known_of_fit(content, tensors),
        )

    @classmethod
    def filled(cls, config: RivalConfig, n_genes: int, n_features: int | None, state: dict[str, Tensor]) -> nn.Module:
        """Build the network from a state dict, without drawing weights."""
        with torch.device("meta"):
            network = cls.untrained(config, n_genes, n_features)
        network.load_state_dict(state, assign=True)
        return network

    @classmethod
    @abstractmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a checkpoint of the authors' code; return the network and the settings that its shapes tell."""

    @classmethod
    def from_published(cls, path: str | Path, *, genes: Sequence[str], mpp: float | None = None) -> Self:
        """Load a checkpoint in the format of the authors' published code.

        Parameters
        ----------
        path
            A file of theirs: a state dict, or what holds one, as `docs/rivals.md` says for each method. Nothing of it
            is run.
        genes
            Names of its outputs, in order.
        mpp
            Scale it was trained at, um per px; None takes every section's scale as equal.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelError
            If it is no such checkpoint.
        ValueError
            If it has another number of genes, or `mpp` is not that of an image of tissue.
        """
        names = list(genes)
        if len(set(names)) < len(names):
            raise ValueError(f"genes= names {len(names) - len(set(names))} of its {len(names)} genes twice")
        network, config = cls.read_published(Path(path), len(names))
        return cls(network, config, names, mpp=require_plausible(mpp), fingerprint=Fingerprint.empty(), genes_by=NAMED)
