"""HGGEP, the model that users hold: configuration, network, genes and expression scale in one object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import nn

from .._settings import settings
from ..config import Config
from ..encoders.side_by_side import Known
from ..features.describe import DIHEDRAL, PLAIN, View
from ..features.encoders import SHUFFLENET, Eye, ObsmEncoder, beside_colours, is_frozen, make_encoder
from ..features.moments import Moments
from ..features.patches import (
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
from ..features.stain import stained
from ..features.store import Described, describe_patches, describe_section, require_length
from ..nn import Ensemble, ModuleEncoder, PublishedNetwork
from ..prediction.chunks import predict_in_chunks, spots_at_once
from ..prediction.confidence import Confidence, optical_density
from ..prediction.context import pitch_of
from ..prediction.finite import require_finite_model, require_finite_prediction
from ..prediction.linear import LinearPath, add_linear
from ..runtime.device import resolve_device, threads_of_torch
from ..runtime.random_state import own_random_state
from ..runtime.validators import whole_or_none
from ..section import Section, require_counts, require_plausible, spot_spacing
from ..section.expression import ExpressionScale
from ..section.fingerprint import Fingerprint
from ..storage.checkpoint import Checkpoint, Parts
from ..storage.models import identity
from ..training.checkpoint import folder_of_fit
from ..training.devices import Devices, Strategy
from ..training.fit import train
from ..training.run import Run
from ..training.split import held_out_spots
from .encoder import encoder_entry
from .fitted import FittedModel, known_of_fit
from .genes import NAMED, GenesBy, training_genes
from .networks import Network, filled, published, stored_state


class HGGEP(FittedModel):
    """A trained predictor of gene expression from H&E patches; made by `hggep_sc.tl.fit` or `HGGEP.load`.

    Attributes
    ----------
    method
        Its name in `hggep_sc.tl.fit`: "hggep".
    takes
        Keywords of `fit` and of `predict`.
    genes
        Names of the predicted genes, in the order of the network's outputs.
    genes_by
        Rule by which they were chosen, or "names"; None for a model saved before it was noted.
    config
        Every setting, as used.
    scale
        The expression scale of the predictions.
    mpp
        Scale that the network was trained at, um per px; None where it was not known.
    reduction
        Full-resolution px per px of the image that it was trained at: above 1 where that was a reduced copy.
    spacing_um
        Least and most um from spot to spot in the training sections; None where they are not known.
    history
        One row per epoch, of the first network: the loss and its terms, and `validation_pcc` where a validation set
        was given.
    seed
        Seed of the training; None for a published checkpoint.
    embeddings
        `obsm` slot that the network reads instead of patches; None where it looks at the image.
    linear
        The linear path, whose prediction is added to the network's; None without one.
    confidence
        What training sections that were left out in turn tell of it; None without `config.cross_fit`.
    """

    method: ClassVar[str] = "hggep"
    configured_by: ClassVar[type[Config]] = Config
    takes: ClassVar[frozenset[str]] = frozenset(
        {"config", "genes", "genes_by", "encoder", "weights", "validation", "seed", "device", "devices", "strategy"}
        | {"num_nodes", "checkpoint_dir", "checkpoint_every", "resume", "progress"}
        | {"batch_size", "average_flips", "chunk_spots", "advance", "checkpoint"}
    )

    def __init__(
        self,
        network: Network,
        config: Config,
        genes: Sequence[str],
        *,
        mpp: float | None,
        fingerprint: Fingerprint,
        history: Sequence[dict[str, float]] = (),
        seed: int | None = None,
        genes_by: str | None = None,
        embeddings: str | None = None,
        linear: LinearPath | None = None,
        confidence: Confidence | None = None,
        reduction: float = 1.0,
        spacing_um: tuple[float, float] | None = None,
    ) -> None:
        self.network = network.eval()
        require_finite_model({**stored_state(network), **({} if linear is None else linear.tensors())})
        self.config = config
        self.genes = list(genes)
        self.scale = ExpressionScale(config.normalize, config.target_sum, config.log_base)
        self.mpp = mpp
        self.fingerprint = fingerprint
        self.history = pd.DataFrame(list(history))
        self.seed = seed
        self.genes_by = genes_by
        self.embeddings = embeddings
        self.linear = linear
        self.confidence = confidence
        self.reduction = reduction
        self.spacing_um = spacing_um

    @property
    def encoder(self) -> Eye | None:
        """What sees the spots: an encoder, embeddings, or None for the released network's own."""
        if self.embeddings is not None:
            return ObsmEncoder(self.embeddings)
        return None if isinstance(self.network, PublishedNetwork) else self.network.encoder

    @property
    def reads_image(self) -> bool:
        """Whether it looks at patches; not where it is given embeddings."""
        return not self.embeddings

    @cached_property
    def id(self) -> str:
        """Name of this trained model: a hash of its genes and weights."""
        linear = {} if self.linear is None else self.linear.tensors()
        return identity("\n".join(self.genes), self.network.state_dict(), linear)

    def __repr__(self) -> str:
        config = self.config
        foreign = isinstance(self.encoder, ObsmEncoder) or (
            self.encoder is not None and not self.encoder.stored
        )  # which has no GEM and no CBAM
        switches = ("vit", "ham", "lstm") if foreign else ("gem", "cbam", "vit", "ham", "lstm")
        modules = [name.upper() for name in switches if getattr(config, name)]
        modules += ["linear path"] if self.linear is not None else []
        fields = fields_of_view(config, self.mpp, self.mpp)
        views = ", ".join(f"{px:.0f} px" if self.mpp is None else f"{px * self.mpp:.0f} um" for px in fields)
        if isinstance(self.encoder, ModuleEncoder):
            views += f", through {type(self.encoder.module).__name__}"
        if isinstance(self.encoder, Known):
            views += f", through {self.encoder.info.title or self.encoder.info.name}"
        sight = f"embeddings: obsm[{self.embeddings!r}]" if self.embeddings else f"fields of view: {views}"
        networks = "network" if config.ensemble == 1 else f"{config.ensemble} networks"
        n_parameters = sum(p.numel() for p in self.network.parameters())
        sections = ", ".join(self.fingerprint.sections) or "none known"
        sections += f", spots {spacing_words(self.spacing_um)} apart" if self.spacing_um is not None else ""
        return (
            f"HGGEP(preset={config.preset!r}, {len(self.genes)} genes, id={self.id})\n"
            f"    {networks}: {n_parameters / 1e6:.1f} M parameters; {' + '.join(modules)}\n"
            f"    {sight}; scale: {self.scale}\n"
            f"    trained on: {sections}; {len(self.history)} epochs, seed {self.seed}"
        )

    @classmethod
    def fit(
        cls,
        sections: Sequence[Section],
        config: Config,
        *,
        genes: Iterable[str] | str | int | None = None,
        genes_by: GenesBy = "moran",
        encoder: str | nn.Module = SHUFFLENET,
        weights: str | Path | None = "pretrained",
        validation: str | float | None = None,
        seed: int = 0,
        device: str = "auto",
        devices: int = 1,
        strategy: Strategy = "auto",
        num_nodes: int = 1,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        progress: bool | None = None,
    ) -> Self:
        """Train on sections; see `hggep_sc.tl.fit` for the parameters."""
        targets, seed = Devices.of(device, devices, strategy, num_nodes), int(seed)
        require_counts(sections)
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
        held_out = held_out_spots(sections, validation, seed)
        # what training is made of, without the spots to validate on: genes and scale are chosen on it alone
        learnt = sections
        if held_out is not None:
            parts = zip(sections, held_out, strict=True)
            learnt = [section.subset(~mask) for section, mask in parts if not mask.all()]
        chosen, by = training_genes(learnt, genes, genes_by)
        scale = ExpressionScale(config.normalize, config.target_sum, config.log_base)
        mpp, reduction, spacing_um = model_mpp(learnt), model_reduction(learnt), training_spacing(learnt)
        run = Run(
            seed,
            targets,
            None if checkpoint_dir is None else Path(checkpoint_dir),
            checkpoint_every,
            resume,
            progress=targets.rank == 0 and (settings.progress if progress is None else progress),
        )
        with (
            folder_of_fit(run.checkpoint_dir, resume, writes=run.writes),
            own_random_state(seed),
            threads_of_torch(),
            torch.inference_mode(False),
            torch.enable_grad(),  # also where the caller goes without; Lightning would leave it on
        ):
            eye = make_encoder(encoder, config, weights, sections)
            trained = train(
                [stained(section, config.stain) for section in sections],
                chosen,
                scale,
                config,
                encoder=eye,
                mpp=mpp,
                reduction=reduction,
                weights=weights,
                held_out=held_out,
                run=run,
            )
        fingerprint = Fingerprint.of(sections, chosen)
        return cls(
            trained.network,
            trained.config,
            chosen,
            mpp=mpp,
            fingerprint=fingerprint,
            history=trained.history,
            seed=seed,
            genes_by=by,
            embeddings=eye.slot if isinstance(eye, ObsmEncoder) else None,
            linear=trained.linear,
            confidence=trained.confidence,
            reduction=reduction,
            spacing_um=spacing_um,
        )

    @torch.inference_mode()
    @threads_of_torch()
    def predict(
        self,
        section: Section,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        average_flips: bool | None = None,
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
            Spots whose patches or crops are encoded at once; None for 64.
        average_flips
            Average the predictions of the spots in eight views, turned and mirrored, of a network that learns from
            pixels; else they are seen as they lie.
        chunk_spots
            Spots that attention and hypergraph see at once; None for as many as `config.chunk_spots` and free memory
            allow.
        advance
            Told how many more spots were read and encoded, which is nearly all of the work.
        checkpoint
            What is known of the section, and is not computed again; what comes to be known goes into it.

        Returns
        -------
        Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.

        Raises
        ------
        ValueError
            If `batch_size` or `chunk_spots` is below 1, or if views are asked for of a frozen encoder's features.
        ModelError
            If what is predicted is NaN or infinite.
        OSError
            If there is no room on disk for what waits there.
        """
        whole_or_none("chunk_spots", chunk_spots)
        if average_flips and is_frozen(self.encoder, self.config):
            raise ValueError(
                "average_flips=True is for networks that learn from pixels: this one has learnt from features of spots "
                "as they lie, by a frozen encoder. Leave it out"
            )
        if not self.embeddings:
            say_if_scale_differs(section, self.mpp, self.reduction)
        say_if_spacing_differs(section, self.spacing_um)
        if self.linear is not None:
            say_if_few(section)
        target = resolve_device(device)
        network = self.network.to(target)
        positions = torch.as_tensor(network.positions(section))
        positions = positions.float() if positions.is_floating_point() else positions
        known, max_spots = (checkpoint or Checkpoint()).in_chunks(
            lambda: spots_at_once(len(section.xy), self.config, target, name=section.name, chunk_spots=chunk_spots)
        )
        views = DIHEDRAL if average_flips else PLAIN
        seen = stained(section, self.config.stain)
        features, described = self._described(seen, views, target, spots_per_batch(batch_size), known.features, advance)
        expression, latent = predict_in_chunks(
            network,
            features,
            section.xy,
            positions.to(target),
            self.config,
            name=section.name,
            max_spots=max_spots,
            pitch=self._pitch(section),
            kept=known.predicted,
        )
        stain = None
        if self.confidence is not None and not self.embeddings:
            stain = optical_density(seen, min(self._fields(section)), self.config.patch_size)
        self._finish(section.name, expression, latent, described, stain)
        return expression, latent

    @torch.inference_mode()
    @threads_of_torch()
    def predict_features(
        self,
        features: np.ndarray,
        xy: np.ndarray,
        *,
        mpp: float | None = None,
        device: str = "auto",
        chunk_spots: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict spots of one section from their embeddings, without a container or an image.

        Parameters
        ----------
        features
            (n_spots, d) embeddings, of the kind that the model was fitted on (`tl.fit(encoder="X_uni")`). All of the
            section's spots belong to the call: attention, hypergraph and linear path see a section as a whole.
        xy
            (n_spots, 2) centres of the spots, um; with `mpp`, px.
        mpp
            Um per px of `xy`.
        device, chunk_spots
            As in `predict`.

        Returns
        -------
        Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.

        Raises
        ------
        ValueError
            If the model looks at images itself; if features or positions are of another length or shape than these, or
            NaN or infinite; if `chunk_spots` is below 1.
        """
        if not self.embeddings:
            raise ValueError(
                "model.predict_features is for models of embeddings (tl.fit(encoder=) with the name of an obsm slot): "
                "this one looks at patches itself, and at their colours; use tl.predict"
            )
        whole_or_none("chunk_spots", chunk_spots)
        seen, places = np.asarray(features), np.asarray(xy)
        assert not isinstance(self.network, PublishedNetwork)  # which looks at patches
        width = self.network.groups[0]
        for name, given, columns in (("features", seen, width), ("xy", places, 2)):
            if given.shape != (len(seen), columns) or given.dtype.kind not in "fiu" or not np.isfinite(given).all():
                raise ValueError(
                    f"{name} must be finite numbers of shape (n_spots, {columns}), one row for each of {len(seen)} "
                    f"spots; found {given.dtype} of shape {given.shape}"
                )
        um = require_plausible(mpp)
        seen, places = seen.astype(np.float32), places * (1.0 if um is None else um)
        target = resolve_device(device)
        encoded = seen[:, None]
        expression, latent = predict_in_chunks(
            self.network.to(target),
            encoded[:, None],
            places,
            torch.from_numpy(places - places.mean(axis=0)).float().to(target),
            self.config,
            name="features",
            max_spots=spots_at_once(len(seen), self.config, target, name="features", chunk_spots=chunk_spots),
            pitch=pitch_of(spot_spacing(places), self.spacing_um),
        )
        self._finish("features", expression, latent, Described(encoded, None), None)
        return expression, latent

    def _finish(
        self, name: str, expression: np.ndarray, latent: np.ndarray, described: Described, stain: np.ndarray | None
    ) -> None:
        """Warn of spots that are unlike those of training, add the linear path, and refuse what is no number."""
        if self.confidence is not None:
            assert described.encoded is not None  # there is an encoder
            mean = Moments.of(described.encoded).mean
            self.confidence.say_if_unlike(name, mean, stain)
        if self.linear is not None:
            add_linear(expression, self.linear, described)
        require_finite_prediction(name, expression, latent)

    def _pitch(self, section: Section) -> float | None:
        """Px between the neighbours that the network knows, where a section's spots lie much closer; else None."""
        if section.mpp is None or self.config.preset == "published":
            return None
        pitch = pitch_of(section.spacing_um, self.spacing_um)
        return None if pitch is None else pitch / section.mpp

    def _fields(self, section: Section) -> tuple[float, ...]:
        """Sides of the fields of view in px of a section's image."""
        return fields_of_view(self.config, self.mpp, section.mpp, section.reduction / self.reduction)

    def _described(
        self,
        section: Section,
        views: tuple[View, ...],
        device: torch.device,
        batch_size: int,
        kept: Parts,
        advance: Callable[[int], object] | None,
    ) -> tuple[np.ndarray, Described]:
        """Return the features of all spots in each view, (n, views, ...), and what is seen of them as they lie."""
        fields, size, network = self._fields(section), self.config.patch_size, self.network
        how: dict[str, Any] = {"batch_size": batch_size, "device": device}
        if is_frozen(self.encoder, self.config):
            if self.embeddings is not None:
                assert not isinstance(network, PublishedNetwork)  # which has its own encoder
                require_length(section, self.embeddings, sum(network.groups))
            how |= {"kept": kept, "advance": advance}
            how["colours"] = self.linear is not None and beside_colours(self.encoder)
            described = describe_section(section, self.encoder, fields, size, **how)
            assert described.encoded is not None  # there is an encoder
            return described.encoded[:, None], described
        assert not isinstance(network, Ensemble)  # whose encoder is frozen
        seen = describe_patches(
            section, network.encode, network.centres, fields, size, views=views, kept=kept, advance=advance, **how
        )
        return seen, Described(seen[:, 0], None)

    def _kept(self) -> tuple[dict[str, Any], dict[str, Mapping[str, torch.Tensor]]]:
        entries: dict[str, Any] = {
            "seen": self.network.seen if isinstance(self.network, Ensemble) else None,
            "encoder": encoder_entry(self.encoder, getattr(self.network, "groups", None), self.config.patch_size),
            "scale": asdict(self.scale),
            "history": self.history.to_dict("records"),
        }
        tensors: dict[str, Mapping[str, torch.Tensor]] = {"network": stored_state(self.network)}
        for name, part in {"linear": self.linear, "confidence": self.confidence}.items():
            if part is not None:
                tensors[name] = part.tensors()
        return entries, tensors

    @property
    def _sees_through(self) -> Eye | None:
        return self.encoder

    @classmethod
    def load(cls, path: str | Path, *, encoder: nn.Module | str | Path | None = None, device: str = "auto") -> Self:
        """Read a model that `save` wrote, on any device whatever it was trained on.

        Parameters
        ----------
        path
            The folder; or a model on the Hugging Face hub, "hf://owner/name@revision" (`pip install "hggep-sc[hub]"`),
            which is downloaded once. Without a revision it is what the repository holds today; the log names its
            commit.
        encoder
            The module that the model was fitted with (`tl.fit(encoder=module)`), with the same weights. For a model
            that was fitted with one known by name: the file or folder of its weights, or None where they are to be had.
        device
            "auto", "cpu", "cuda", "cuda:1", "mps".

        Returns
        -------
        The model, as it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ModelError
            If the folder is not a model of this class, is damaged, or was written by another version.
        ValueError
            If the model wants an encoder that was not given, is another, or computes something else.
        """
        target = resolve_device(device)
        model = super().load(path, encoder=encoder)
        model.network.to(target)
        return model

    @classmethod
    def _rebuild(
        cls,
        content: dict[str, Any],
        tensors: dict[str, dict[str, torch.Tensor]],
        *,
        given: nn.Module | str | Path | None,
    ) -> Self:
        config = Config.from_dict({"ensemble": 1, **content["config"]})  # before there were ensembles, none was named
        genes, entry = content["genes"], content["encoder"]
        return cls(
            filled(config, len(genes), tensors["network"], entry, given, content.get("seen")),
            config,
            genes,
            history=content["history"],
            embeddings=entry["key"] if entry is not None and entry["kind"] == "obsm" else None,
            linear=LinearPath.from_tensors(tensors["linear"]) if "linear" in tensors else None,
            confidence=Confidence.from_tensors(tensors["confidence"]) if "confidence" in tensors else None,
            **known_of_fit(content, tensors),
        )

    @classmethod
    def from_published(cls, path: str | Path, *, genes: Sequence[str], mpp: float | None = None) -> Self:
        """Load a checkpoint of the authors' released code.

        Predictions follow the released network, but for the dropout that it leaves on at inference: here it is off.
        Sections need `obs["array_col"]` and `obs["array_row"]` below 64, which its position embedding looks up.

        Parameters
        ----------
        path
            A plain state dict (`.pth`, `.ckpt` or `.safetensors`) with the released code's entry names.
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
        mpp = require_plausible(mpp)
        return cls(
            published(Path(path), genes),
            Config.from_preset("published"),
            genes,
            mpp=mpp,
            fingerprint=Fingerprint.empty(),
            genes_by=NAMED,
        )
