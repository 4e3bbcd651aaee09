"""Networks and their state dicts: what a model's folder holds of one, and how it is filled again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..encoders.registry import SHUFFLENET
from ..encoders.weights import read_state_dict
from ..errors import ModelError
from ..nn import Ensemble, HGGEPNetwork, PublishedNetwork, averaged, shufflenet_encoder
from ..nn.ensemble import Seen
from .encoder import required_encoder

Network = HGGEPNetwork | Ensemble | PublishedNetwork


def filled(
    config: Config,
    n_genes: int,
    state: dict[str, torch.Tensor],
    entry: dict[str, Any] | None,
    given: nn.Module | str | Path | None,
    seen: Sequence[Sequence[int]] | None = None,
) -> Network:
    """Build a network from a state dict and the manifest's entry of its encoder, without drawing weights.

    `seen` tells which groups of features each network of an ensemble sees; None for one that is older, where all saw
    everything.
    """
    if entry is None:
        with torch.device("meta"):
            published = PublishedNetwork(n_genes)
        published.load_state_dict(state, assign=True)
        return published
    found = required_encoder(entry, given, config)
    n_networks, groups = config.ensemble or 1, tuple(entry["groups"])
    parts = [Seen(*part) for part in seen or [(0, len(groups))] * n_networks]
    layers = n_networks * max(1, config.vit_depth * config.vit + config.lstm_layers * config.lstm)
    if layers > len(state) or len(parts) != n_networks:  # no layer is without a tensor
        raise ValueError(
            f"its configuration asks for {layers} layers in {n_networks} networks; there are {len(state)} tensors, and "
            f"parts of the features for {len(parts)}"
        )
    with torch.device("meta"):
        encoder = shufflenet_encoder(config) if entry["kind"] == SHUFFLENET else None
        n_fields = len(next(value for name, value in state.items() if name.endswith("feature_mean")))
        networks = [
            HGGEPNetwork(config, n_genes, encoder=encoder, groups=groups[part.first : part.end], n_fields=n_fields)
            for part in parts
        ]
        network = averaged(networks, groups, parts)
    network.load_state_dict(state, assign=True)
    if found is not None:
        network.encoder = found
    return network


def stored_state(network: Network) -> dict[str, torch.Tensor]:
    """Return the state that a model's folder holds: without an encoder that is not."""
    encoder = None if isinstance(network, PublishedNetwork) else network.encoder
    if encoder is None or encoder.stored:
        return network.state_dict()
    return {name: values for name, values in network.state_dict().items() if not name.startswith("encoder.")}


def published(path: Path, genes: Sequence[str]) -> PublishedNetwork:
    """Fill the released network from a checkpoint of its authors' code; see `HGGEP.from_published`."""
    state = read_state_dict(path)
    if "gene_head.1.bias" not in state:
        raise ModelError(f"{path} is not a checkpoint of the released HGGEP code: entry 'gene_head.1.bias' is missing")
    n_genes = len(state["gene_head.1.bias"])
    if len(genes) != n_genes or len(set(genes)) != n_genes:
        raise ValueError(
            f"{path} predicts {n_genes} genes, but genes= has {len(genes)} names ({len(set(genes))} different)"
        )
    try:
        network = filled(Config.from_preset("published"), n_genes, state, None, None)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is not a checkpoint of the released HGGEP code: {error}") from error
    assert isinstance(network, PublishedNetwork)  # as asked for
    return network
