from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import LEARNING, bfloat16
from hggep_sc.config import Config
from hggep_sc.nn import HGGEPNetwork, PublishedNetwork, shufflenet_encoder
from hggep_sc.training.data import SectionData
from hggep_sc.training.plan import TrainingPlan

N, GENES = 12, 7
SMALL = {"width": 32, "vit_heads": 2, "vit_depth": 1, "lstm_layers": 2, "patch_size": 32, "n_components": None}
NETWORKS = {
    "default": ("default", SMALL),
    "learning": ("default", {**SMALL, **LEARNING, "count_weight": 0.05}),
    "paper": ("paper", SMALL),
    "published": ("published", {}),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def plan_and_batch(name):
    """A network about to take its first step, and what it takes it on: twelve spots, the last without counts."""
    preset, settings = NETWORKS[name]
    config = Config.from_preset(preset, **settings)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    if name == "published":
        network = PublishedNetwork(GENES)
    else:
        encoder = shufflenet_encoder(config)
        network = HGGEPNetwork(config, GENES, encoder=encoder, groups=encoder.groups, n_fields=len(config.fields_px))
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():  # each module takes part
                torch.nn.init.normal_(parameter, std=0.1)
    if name == "default":
        seen = rng.normal(size=(N, 8, len(config.fields_px), sum(network.groups))).astype(np.float32)
    else:
        shape = (N, len(config.fields_px), 3, config.patch_size, config.patch_size)
        seen = rng.integers(0, 256, shape, dtype=np.uint8)
    grid = np.column_stack([np.arange(N) % 4, np.arange(N) // 4])
    counts = rng.poisson(1.0, (N, GENES)).astype(np.float32)
    data = SectionData(
        name="A",
        xy=grid * 100.0,
        seen=seen,
        positions=grid if name == "published" else grid * np.float32(100),
        expression=np.log1p(counts),
        counts=counts,
        totals=counts.sum(1),
        size_factors=np.ones(N, np.float32),
        observed=np.arange(N) < N - 1,
    )
    plan = TrainingPlan(network.train(), config, seed=0)
    plan.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    return plan, plan.transfer_batch_to_device(data.batch(np.arange(N)), torch.device("cpu"), 0)


WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "item",
    "linalg_inv_ex",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
}


class Waits(TorchDispatchMode):
    """Record what makes the host wait for a GPU: its answer decides what follows, or how long that is."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if {name, name.split(".")[0]} & WAITING or self.has_mask(name, args):
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def has_mask(name, args):
        if not name.startswith(("index.", "index_put")):
            return False
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return masks and not (name.startswith("index_put") and args[2].numel() == 1)  # torch fills instead


@networks
def test_a_training_step_waits_for_nothing(name, monkeypatch):
    plan, batch = plan_and_batch(name)
    for owner, function in ((torch.Tensor, "tolist"), (torch.Tensor, "new_tensor"), (torch, "tensor")):
        monkeypatch.setattr(owner, function, None)  # these wait, too, and are not dispatched as what they are
    with Waits() as waits:
        plan.training_step(batch, 0)["loss"].backward()
    assert waits.found == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([True, False, True])],
        lambda x: x.repeat_interleave(torch.arange(3)),
        lambda x: (x > 0).nonzero(),
    ],
)
def test_waits_are_found(wait):
    with Waits() as waits:
        wait(torch.ones(3))
    assert waits.found


@networks
def test_a_training_step_in_mixed_precision(name):
    """As on a GPU: the loss is that of single precision but for rounding, and every gradient is finite."""
    losses = []
    for precision in (nullcontext(), bfloat16()):
        plan, batch = plan_and_batch(name)
        for module in plan.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # the same of both
        with precision:
            loss = plan.training_step(batch, 0)["loss"]
        loss.backward()
        assert loss.dtype == torch.float32
        gradients = [p.grad for p in plan.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]


def test_positions_stay_where_the_network_wants_them():
    for name, device in {"default": "meta", "published": "cpu"}.items():
        plan, batch = plan_and_batch(name)
        moved = plan.transfer_batch_to_device(batch, torch.device("meta"), 0)
        assert moved.positions.device.type == device
        assert moved.expression.device.type == moved.observed.device.type == "meta"
        assert moved.section == "A"
