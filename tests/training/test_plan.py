from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import bfloat16
from small_networks import networks, plan_and_batch

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


def test_validation_sees_spots_without_augmentation():
    """As in prediction."""
    plan, batch = plan_and_batch("default")
    with torch.inference_mode():
        plan.eval().validation_step(batch, 0)
        expected = plan.network.decode(batch.features, batch.positions).expression[batch.observed]
    ((predicted, _),) = plan._validation["A"]
    torch.testing.assert_close(torch.from_numpy(predicted), expected)
    assert expected.std(0).min() > 1e-3


def test_positions_stay_where_the_network_wants_them():
    for name, device in {"default": "meta", "published": "cpu"}.items():
        plan, batch = plan_and_batch(name)
        moved = plan.transfer_batch_to_device(batch, torch.device("meta"), 0)
        assert moved.positions.device.type == device
        assert moved.expression.device.type == moved.observed.device.type == "meta"
        assert moved.section == "A"
