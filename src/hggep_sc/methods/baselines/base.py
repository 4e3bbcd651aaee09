"""Baseline: what all of them share; a method learns from features and centred targets, and responds to features."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...features.encoders import SHUFFLENET, Eye, ObsmEncoder, make_encoder, sees_colours
from ...features.patches import (
    fields_of_view,
    model_mpp,
    model_reduction,
    say_if_few,
    say_if_scale_differs,
    say_if_spacing_differs,
    spacing_words,
    spots_per_batch,
    training_spacing,
)
from ...features.stain import stained
from ...features.store import describe_section, require_length
from ...prediction.finite import require_finite_model, require_finite_prediction
from ...prediction.linear import linear_features, plain_features
from ...runtime.device import resolve_device, threads_of_torch
from ...runtime.progress import over_sections
from ...section import Section, require_counts
from ...section.expression import ExpressionScale
from ...section.fingerprint import Fingerprint
from ...storage.checkpoint import Checkpoint, Parts
from ...storage.models import identity
from ...training.data import counts_to_learn
from ...training.selection import Training
from ..encoder import encoder_entry, required_encoder
from ..fitted import FittedModel, known_of_fit
from ..genes import GenesBy, training_genes
from .config import BaselineConfig
from .trunk import Trunk


class Baseline(FittedModel):
    """A predictor without training by gradient; made by `hggep_sc.tl.fit(method=...)` or `load`.

    The prediction is `gene_mean`, the mean over the training sections of their mean expression, plus what the
    method makes of the patches' features.

    Attributes
    ----------
    method
        Its name in `hggep_sc.tl.fit`.
    takes
        Keywords of `fit` and of `predict`.
    genes
        Names of the predicted genes, in the order of the outputs.
    genes_by
        Rule by which they were chosen, or "names"; None for a model saved before it was noted.
    config
        Every setting.
    arrays
        What was learnt, by name: `gene_mean` (n_genes,) and what the method adds.
    trunk
        The pretrained trunk that features were computed with; None without.
    encoder
        What sees the spots in place of the trunk: an encoder known by name, a module of the user's, or embeddings;
        None without.
    scale
        The expression scale of the predictions.
    mpp
        Scale that patches are brought to, um per px; None where it was not known.
    reduction
        Full-resolution px per px of the image at that scale: above 1 where that was a reduced copy.
    spacing_um
        Least and most um from spot to spot in the training sections; None where they are not known.
    seed
        Seed of the fit: of the blocks that are left out where one section trains alone, and of what a file of
        weights lacks.
    """

    method: ClassVar[str]
    configured_by: ClassVar[type[BaselineConfig]] = BaselineConfig
    takes: ClassVar[frozenset[str]] = frozenset(
        {"config", "genes", "genes_by", "encoder", "weights", "seed", "device", "progress"}
        | {"batch_size", "advance", "checkpoint"}
    )
    confidence: ClassVar[None] = None  # that is the network's
    reads_image: bool = True  # of a method and of a model
    within_section: ClassVar[bool] = True  # features are standardised, and targets centred, in each section by itself

    def __init__(
        self,
        config: BaselineConfig,
        genes: Sequence[str],
        arrays: Mapping[str, np.ndarray],
        *,
        trunk: Trunk | None,
        mpp: float | None,
        fingerprint: Fingerprint,
        seed: int,
        encoder: Eye | None = None,
        reduction: float = 1.0,
        spacing_um: tuple[float, float] | None = None,
        genes_by: str | None = None,
    ) -> None:
        self.config = config
        self.genes = list(genes)
        self.arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        self.trunk = trunk
        self.encoder = encoder
        self.embeddings = encoder.slot if isinstance(encoder, ObsmEncoder) else None
        self.reads_image = type(self).reads_image and self.embeddings is None
        require_finite_model({**self._array_tensors(), **self._trunk_state()})
        self.scale = ExpressionScale(config.normalize, config.target_sum, config.log_base)
        self.mpp = mpp
        self.reduction = reduction
        self.spacing_um = spacing_um
        self.fingerprint = fingerprint
        self.seed = seed
        self.genes_by = genes_by

    @classmethod
    @abstractmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        """Return what is learnt, by name.

        Raises
        ------
        ValueError
            For settings that want more training spots than there are.
        """

    @abstractmethod
    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return expression around `gene_mean` (n_spots, n_genes) and, where there is one, a latent (n_spots, d)."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """How many features it reads of a spot."""

    @cached_property
    def id(self) -> str:
        """Name of this fitted model: a hash of its genes and of what was learnt."""
        seen_by = "" if self.encoder is None else self.encoder.id
        return identity("\n".join([self.method, *self.genes]) + seen_by, self._array_tensors(), self._trunk_state())

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {'x'.join(map(str, a.shape)) or a.item()}" for name, a in sorted(self.arrays.items())
        )
        sections = ", ".join(self.fingerprint.sections)
        sections += f", spots {spacing_words(self.spacing_um)} apart" if self.spacing_um is not None else ""
        return (
            f"{type(self).__name__}({len(self.genes)} genes, id={self.id})\n"
            f"    learnt: {shapes}; scale: {self.scale}\n"
            f"    trained on: {sections}"
        )

    @classmethod
    @threads_of_torch()
    def fit(
        cls,
        sections: Sequence[Section],
        config: BaselineConfig,
        *,
        genes: Iterable[str] | str | int | None = None,
        genes_by: GenesBy = "moran",
        encoder: str | nn.Module = SHUFFLENET,
        weights: str | Path | None = "pretrained",
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
    ) -> Self:
        """Fit to sections; see `hggep_sc.tl.fit` for the parameters.

        Targets are the log expression less the section's mean; spots without counts are left out.
        """
        training, known = cls.gathered(
            sections, config, genes, genes_by, encoder, weights, seed, resolve_device(device), progress
        )
        means = known.pop("gene_mean")
        return cls(config, arrays={"gene_mean": means, **cls.learn(training, config)}, **known)

    @classmethod
    def gathered(
        cls,
        sections: Sequence[Section],
        config: BaselineConfig,
        genes: Iterable[str] | str | int | None,
        genes_by: GenesBy,
        encoder: str | nn.Module,
        weights: str | Path | None,
        seed: int,
        device: torch.device,
        progress: bool | None,
    ) -> tuple[Training, dict[str, Any]]:
        """Return what there is to learn from, and what else the model is made of; see `hggep_sc.tl.fit`.

        Raises
        ------
        ValueError
            If embeddings of the sections have different lengths.
        """
        seed = int(seed)
        require_counts(sections)
        chosen, by = training_genes(sections, genes, genes_by)
        scale = ExpressionScale(config.normalize, config.target_sum, config.log_base)
        mpp, reduction, spacing_um = model_mpp(sections), model_reduction(sections), training_spacing(sections)
        own = isinstance(encoder, str) and encoder == SHUFFLENET
        eye = None if own else make_encoder(encoder, config.shared, weights, sections)
        trunk = Trunk.pretrained(weights, seed) if cls.reads_image and eye is None else None
        features: list[np.ndarray] = []
        targets, means, xy = [], [], []
        for section in over_sections(sections, cls.method, progress):
            counts, totals = counts_to_learn(section, chosen, scale)
            seen = totals > 0
            expression = scale.transform(counts, totals)[seen].astype(np.float64)
            found = cls._features(
                section, config, mpp, trunk, device, spots_per_batch(None), encoder=eye, reduction=reduction
            )
            if isinstance(eye, ObsmEncoder) and features and found.shape[1] != features[0].shape[1]:
                raise ValueError(
                    f"section {section.name!r}: {section.embeddings_slot(eye.slot)} has {found.shape[1]} columns, and "
                    f"{features[0].shape[1]} in section {sections[0].name!r}"
                )
            features.append(found[seen])
            means.append(expression.mean(axis=0))
            targets.append(expression - means[-1] if cls.within_section else expression)
            xy.append(section.xy[seen])
        training = Training.of(np.concatenate(features), targets, xy, [section.group for section in sections], seed)
        known = {
            "genes": chosen,
            "gene_mean": np.mean(means, axis=0),
            "trunk": trunk,
            "encoder": eye,
            "mpp": mpp,
            "fingerprint": Fingerprint.of(sections, chosen),
            "seed": seed,
            "reduction": reduction,
            "spacing_um": spacing_um,
            "genes_by": by,
        }
        return training, known

    @threads_of_torch()
    def predict(
        self,
        section: Section,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        advance: Callable[[int], object] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict one section.

        Parameters
        ----------
        section
            Where the spots and the image are. All of its spots belong to the call: features are standardised over
            them.
        device
            "auto", "cpu", "cuda", "cuda:1", "mps".
        batch_size
            Spots whose patches are held at once; None for 64.
        advance
            Told how many more spots are done.
        checkpoint
            What is known of the section, and is not computed again.

        Returns
        -------
        Log expression (n_spots, n_genes), float32, and the latent representation (n_spots, d), float32, or None
        where the method has none.

        Raises
        ------
        ValueError
            If `batch_size` is below 1.
        ModelError
            If what is predicted is NaN or infinite.
        """
        batch_size = spots_per_batch(batch_size)
        if self.embeddings is not None:
            require_length(section, self.embeddings, self.n_features)
        else:
            say_if_scale_differs(section, self.mpp, self.reduction)
        say_if_spacing_differs(section, self.spacing_um)
        if self.reads_image:
            say_if_few(section)
        features = self._features(
            section,
            self.config,
            self.mpp,
            self.trunk,
            resolve_device(device),
            batch_size,
            encoder=self.encoder,
            reduction=self.reduction,
            kept=None if checkpoint is None else checkpoint.features,
            advance=advance,
        )
        centred, latent = self._respond(features)
        expression = (self.arrays["gene_mean"] + centred).astype(np.float32)
        latent = None if latent is None else latent.astype(np.float32)
        require_finite_prediction(section.name, expression, *([] if latent is None else [latent]))
        return expression, latent

    @classmethod
    def _features(
        cls,
        section: Section,
        config: BaselineConfig,
        mpp: float | None,
        trunk: Trunk | None,
        device: torch.device,
        batch_size: int,
        *,
        encoder: Eye | None = None,
        reduction: float = 1.0,
        kept: Parts | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Return the features of all spots, float32 (n_spots, n_features).

        These are `linear_features`, standardised within the section, or as they are where not `within_section`; colours
        are beside the package's own encoders alone.
        """
        if not cls.reads_image and encoder is None:
            if advance is not None:
                advance(len(section.xy))
            return np.empty((len(section.xy), 0), dtype=np.float32)
        described = describe_section(
            stained(section, config.stain),
            trunk if encoder is None else encoder,
            fields_of_view(config.shared, mpp, section.mpp, section.reduction / reduction),
            config.patch_size,
            colours=encoder is None or sees_colours(encoder),
            device=device,
            batch_size=batch_size,
            kept=kept,
            advance=advance,
        )
        return linear_features(described) if cls.within_section else plain_features(described)

    def _kept(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
        """See `FittedModel`; the trunk's weights are kept too, so that prediction needs no download."""
        entries: dict[str, Any] = {}
        if self.encoder is not None:
            entries["encoder"] = encoder_entry(self.encoder, [self.n_features], self.config.patch_size)
        network = {} if self.trunk is None else {"network": self._trunk_state()}
        return entries, {"arrays": self._array_tensors(), **network}

    @property
    def _sees_through(self) -> "Eye | Trunk | None":
        return self.encoder or self.trunk

    @classmethod
    def _rebuild(
        cls,
        content: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        *,
        given: nn.Module | str | Path | None,
    ) -> Self:
        config, entry = BaselineConfig.from_dict(content["config"]), content.get("encoder") or {"kind": SHUFFLENET}
        found = required_encoder(entry, given, config.shared)
        return cls(
            config,
            content["genes"],
            {name: tensor.numpy() for name, tensor in tensors["arrays"].items()},
            trunk=Trunk.of_state(tensors["network"]) if "network" in tensors else None,
            encoder=ObsmEncoder(entry["key"]) if "key" in entry else found,
            **known_of_fit(content, tensors),
        )

    def _array_tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array) for name, array in self.arrays.items()}

    def _trunk_state(self) -> dict[str, Tensor]:
        return {} if self.trunk is None else self.trunk.state_dict()
