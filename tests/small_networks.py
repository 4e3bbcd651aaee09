"""Small networks of each kind, and what they learn from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import LEARNING, MeanColour
from hggep_sc.config import Config
from hggep_sc.features.encoders import is_frozen
from hggep_sc.nn import HGGEPNetwork, ModuleEncoder, PublishedNetwork, shufflenet_encoder
from hggep_sc.training.data import SectionData
from hggep_sc.training.plan import TrainingPlan

SMALL = {"width": 32, "vit_heads": 2, "vit_depth": 1, "lstm_layers": 2, "patch_size": 32, "n_components": None}
NETWORKS = {
    "default": ("default", SMALL),
    "module": ("default", {**SMALL, "n_components": 4}),
    "learning": ("default", {**SMALL, **LEARNING, "count_weight": 0.05}),
    "paper": ("paper", SMALL),
    "published": ("published", {}),
}
networks = pytest.mark.parametrize("name", NETWORKS)
N_SPOTS, N_GENES = 12, 7


def small_network(name):
    """One of `NETWORKS`, each of whose modules takes part, and its configuration."""
    preset, settings = NETWORKS[name]
    config = Config.from_preset(preset, **settings)
    torch.manual_seed(0)
    if name == "published":
        return PublishedNetwork(N_GENES), config
    encoder = shufflenet_encoder(config)
    if name == "module":
        encoder = ModuleEncoder(MeanColour(np.eye(3, 4)), config.patch_size)
    network = HGGEPNetwork(config, N_GENES, encoder=encoder, groups=encoder.groups, n_fields=len(config.fields_px))
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if network.basis is not None:
        nn.init.orthogonal_(network.basis)
    return network, config


def data_for(network, config):
    """What a network learns from: twelve spots, the last without counts."""
    n_fields, published = len(config.fields_px), isinstance(network, PublishedNetwork)
    data = data_of_patches(config.patch_size, n_fields)
    if not published:
        data.positions = data.positions * np.float32(100)
        if is_frozen(network.encoder, config):
            shape = (N_SPOTS, n_fields, sum(network.groups))
            data.seen = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return data


def data_of_patches(patch_size, n_fields=1):
    """Patches of twelve spots on an array, the last without counts."""
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (N_SPOTS, n_fields, 3, patch_size, patch_size), dtype=np.uint8)
    grid = np.column_stack([np.arange(N_SPOTS) % 4, np.arange(N_SPOTS) // 4])
    counts = rng.poisson(1.0, (N_SPOTS, N_GENES)).astype(np.float32)
    return SectionData(
        name="A",
        xy=grid * 100.0,
        seen=seen,
        positions=grid,
        expression=np.log1p(counts),
        counts=counts,
        totals=counts.sum(1),
        size_factors=np.ones(N_SPOTS, np.float32),
        observed=np.arange(N_SPOTS) < N_SPOTS - 1,
    )


def plan_and_batch(name):
    """A network about to take its first step, and what it takes it on."""
    network, config = small_network(name)
    plan = TrainingPlan(network.train(), config, seed=0)
    plan.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    batch = data_for(network, config).batch(np.arange(N_SPOTS))
    return plan, plan.transfer_batch_to_device(batch, torch.device("cpu"), 0)
