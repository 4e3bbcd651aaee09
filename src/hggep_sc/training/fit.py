"""Training: sections in, trained networks and what cross-fitting tells of them out."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..errors import TrainingWarning
from ..features.encoders import Eye, ObsmEncoder, is_frozen
from ..features.patches import fields_of_view
from ..nn import Encoder, Ensemble, HGGEPNetwork, PublishedNetwork, averaged
from ..nn.ensemble import Seen, networks_for, seen_by_each
from ..prediction.confidence import Confidence, optical_density
from ..prediction.linear import LinearPath
from ..runtime.messages import warn
from ..section.expression import ExpressionScale
from ..storage.checkpoint import remove_checkpoints
from .checkpoint import (
    FEATURES,
    FURTHER,
    checkpoint_to_resume,
    identity_of,
    last_checkpoint,
)
from .confidence import confidence_of
from .cross_fit import Weights, cross_fit
from .data import SectionData, parted
from .lightning_manners import interruptible, quiet
from .linear import fit_linear
from .network import fit_network, groups_of
from .read import read_sections
from .run import Run

if TYPE_CHECKING:
    from ..section import Section


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
    encoder: Eye | None,
    mpp: float | None,
    reduction: float,
    weights: str | Path | None,
    held_out: Sequence[np.ndarray] | None,
    run: Run,
) -> Trained:
    """Train a network on sections; see `hggep_sc.tl.fit` for the parameters.

    `encoder` is what `make_encoder` made, or None for the released network, which has its own and takes `weights`;
    `held_out` marks per section the spots that are validated on, `mpp` is the scale to train at, `reduction` how many
    full-resolution px a px has there. The caller holds `run.checkpoint_dir` and the random state.
    """
    if not is_frozen(encoder, config):
        if config.ensemble not in (None, 1) or (config.linear and config.cross_fit):
            warn(
                "an encoder that learns is trained as one network without a linear path: "
                f"config.ensemble={config.ensemble} and config.linear={config.linear} are not used (set 1 and False)",
                TrainingWarning,
            )
        config = config.replace(ensemble=1)  # networks that share no encoder are no ensemble of ours
    fields = [fields_of_view(config, mpp, section.mpp, section.reduction / reduction) for section in sections]
    if config.ensemble is None:
        config = config.replace(ensemble=networks_for(len(encoder.groups) if isinstance(encoder, Encoder) else 1))
    with interruptible(run.checkpoint_dir), quiet():
        data = read_sections(
            sections,
            genes,
            scale,
            config,
            encoder=encoder,
            fields=fields,
            held_out=held_out,
            run=run,
        )
        identity = identity_of(data, genes, config, held_out, run.seed, run.devices.number)
        checkpoint = checkpoint_to_resume(run.checkpoint_dir, run.resume, identity, writes=run.writes)
        training, validation = (data, []) if held_out is None else parted(data, held_out)
        fits = _Fits(encoder, config, run, groups_of(encoder, data), n_genes=len(genes), weights=weights)
        trained = fits.to_all(training, validation, checkpoint)
        if config.cross_fit and not isinstance(trained.network, PublishedNetwork):
            learnt = {part.name for part in training}
            looked_at = [] if isinstance(encoder, ObsmEncoder) else zip(sections, fields, strict=True)
            densities = [optical_density(s, min(f), config.patch_size) for s, f in looked_at if s.name in learnt]
            stain = np.array(densities).reshape(-1, 3)
            _learn_from_left_out(trained, fits, training, scale, stain, run)
    if run.checkpoint_dir is not None and run.writes:
        remove_checkpoints(run.checkpoint_dir / FEATURES)
    return trained


class _Fits:
    """Networks fitted one after another with the same settings, each with a folder for its checkpoints.

    Parameters
    ----------
    encoder
        What all of them see through; of one that learns, each has its own.
    config
        The configuration; `ensemble` networks are fitted at a time, and averaged.
    run
        Of the first of them; folders of the others' checkpoints are inside its own.
    groups
        Sizes of the groups of features, which the networks of an ensemble share out.
    **settings
        The other arguments of `fit_network` that are the same for all.
    """

    def __init__(self, encoder: Eye | None, config: Config, run: Run, groups: tuple[int, ...], **settings: Any) -> None:
        self._settings: dict[str, Any] = {"config": config, **settings}
        n = config.ensemble or 1
        self._run, self._groups, self._seen = run, groups, seen_by_each(len(groups), n)
        self._encoder, self._learns = encoder, not is_frozen(encoder, config)
        # one that learns is changed by a fit
        self._fresh = deepcopy(encoder) if self._learns and config.cross_fit else encoder
        self._seeds = _seeds(run.seed, n)
        self._turns = count(1)
        self._epochs = config.epochs

    def to_all(self, training: list[SectionData], validation: list[SectionData], checkpoint: Path | None) -> Trained:
        """Fit to all sections. How long all other networks are trained is what `validation` told of the first."""
        first = fit_network(
            training,
            validation,
            **self._settings,
            encoder=self._encoder,
            run=self._run,
            sees=self._seen[0],
            checkpoint=checkpoint,
            called=self._called(1),
        )
        if validation:
            self._epochs = _best_epoch(first.history)
        network: HGGEPNetwork | Ensemble | PublishedNetwork = first.network
        if isinstance(first.network, HGGEPNetwork):
            members = [first.network]
            for number, (seed, sees) in enumerate(zip(self._seeds[1:], self._seen[1:], strict=True), 2):
                members.append(self._another(training, seed, sees, self._called(number)))
            network = averaged(members, self._groups, self._seen)
        return Trained(network, first.config, first.history)

    def _called(self, number: int) -> str:
        """Name of a fit's progress bar; "" for none."""
        if not self._run.progress:
            return ""
        return "fit" if len(self._seeds) == 1 else f"fit {number} of {len(self._seeds)}"

    def to_some(self, kept: list[SectionData]) -> HGGEPNetwork | Ensemble:
        """Fit to what is left of the sections."""
        members = [self._another(kept, seed, sees) for seed, sees in zip(self._seeds, self._seen, strict=True)]
        return averaged(members, self._groups, self._seen)

    def _another(self, data: list[SectionData], seed: int, sees: Seen, called: str = "") -> HGGEPNetwork:
        around = self._run.checkpoint_dir
        folder = None if around is None else around / f"{FURTHER}_{next(self._turns)}"
        network = fit_network(
            data,
            [],
            **self._settings,
            encoder=deepcopy(self._fresh) if self._learns else self._encoder,
            run=replace(self._run, seed=seed, checkpoint_dir=folder),
            sees=sees,
            stop_after=self._epochs,
            checkpoint=last_checkpoint(folder),  # of this fit, as the folder around it
            called=called,
        ).network
        assert isinstance(network, HGGEPNetwork)  # as the one that it stands beside or in for
        return network


def _learn_from_left_out(
    trained: Trained,
    fits: _Fits,
    training: list[SectionData],
    scale: ExpressionScale,
    stain: np.ndarray,
    run: Run,
) -> None:
    """Leave training sections out in turn, to weigh network and linear path and to tell how far to trust them."""
    network = trained.network
    assert not isinstance(network, PublishedNetwork)  # which is taken as it is
    linear = fit_linear(training, run.seed) if training[0].linear is not None else None

    def refit(kept: list[SectionData]) -> tuple[HGGEPNetwork | Ensemble, LinearPath | None]:
        path = None if linear is None else fit_linear(kept, run.seed, linear.alpha)
        return fits.to_some(kept).to(run.devices.own), path

    held = cross_fit(training, refit, scale, seed=run.seed, progress=run.progress)
    weights, linear = run.devices.agreed((Weights.of(held), linear))
    if weights is None:
        warn(
            "nothing was learnt that holds in training sections which were left out (in turn): the prediction is the "
            "network's, as training left it",
            TrainingWarning,
        )
        weights = Weights(network=1.0, linear=0.0)
    network.scale_output(weights.network)
    trained.linear = None if linear is None else linear.scaled(weights.linear)
    told = confidence_of(network.to(run.devices.own), training, held, weights, scale=scale, stain=stain)
    trained.confidence = run.devices.agreed(told)


def _seeds(seed: int, n: int) -> list[int]:
    """Return a seed for each network of an ensemble, the fit's own first."""
    return [seed, *map(int, np.random.SeedSequence(seed).generate_state(n - 1))]


def _best_epoch(history: list[dict[str, float]]) -> int:
    """Return for how many epochs the network that validation kept was trained."""
    return int(np.argmax([record["validation_pcc"] for record in history])) + 1
