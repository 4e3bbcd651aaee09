import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

import hggep_sc as hggep
from helpers import CPU, LEARNING, TINY, WAIT
from hggep_sc.training.devices import Devices
from hggep_sc.training.loop import EpochOrder
from hggep_sc.training.plan import TrainingPlan

SCRIPT = Path(__file__).with_name("two_processes.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
CHUNKED = {**TINY, "chunk_spots": 20}  # four chunks of two sections: an even number for two processes


def run(launch, data, settings, results):
    """What each of two processes came to."""
    results.mkdir()
    command = [sys.executable, *launch, str(SCRIPT), str(data), json.dumps(settings), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(results / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def accumulated(monkeypatch, sections, settings):
    """The same by one process that sums the gradients of two steps: model, and gradients of the first step."""
    gradients = {}

    def note(self, optimizer):
        if not gradients:
            gradients.update({n: p.grad.clone() for n, p in self.named_parameters() if p.requires_grad})

    monkeypatch.setattr(TrainingPlan, "on_before_optimizer_step", note)
    monkeypatch.setattr(L, "Trainer", partial(L.Trainer, accumulate_grad_batches=2))
    return hggep.tl.fit(sections, **settings, **CPU), gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "settings"),
    [
        (TORCHRUN, {"config": {**CHUNKED, "cross_fit": True}, "validation": 0.3}),
        ([], {"config": {**CHUNKED, **LEARNING, "cross_fit": False, "epochs": 2}, "validation": 0.3}),
    ],
    ids=["torchrun-frozen", "python-learning"],
)
def test_two_processes_are_two_accumulated_steps_of_one(sections, tmp_path, monkeypatch, launch, settings):
    (tmp_path / "data").mkdir()
    del sections["S3"]
    for name, section in sections.items():
        section.write_h5ad(tmp_path / "data" / f"{name}.h5ad")
    settings = {"genes": 12, "seed": 1, **settings}
    first, second = run(launch, tmp_path / "data", settings, tmp_path / "results")
    assert first["id"] == second["id"]
    assert first["history"] == second["history"]
    saved = hggep.HGGEP.load(tmp_path / "results" / "model", device="cpu")
    assert saved.id == first["id"]

    one, gradients = accumulated(monkeypatch, sections, settings)
    assert gradients.keys() == first["gradients"].keys() == second["gradients"].keys()
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2
    for name, gradient in gradients.items():
        for process in (first, second):
            torch.testing.assert_close(process["gradients"][name], gradient, rtol=1e-5, atol=1e-5)
    halved = one.history.assign(loss=2 * one.history["loss"])  # Lightning divides it by the steps
    if "gem" in settings["config"]:
        # with other batches' statistics than one process has, a backbone that learns is validated; and of its gradients
        # that are nothing but rounding AdamW makes whole steps, so that later losses depend on that
        alike, rows = ["epoch", "loss"], slice(1)
    else:
        alike, rows = list(halved), slice(None)
    pd.testing.assert_frame_equal(saved.history[alike][rows], halved[alike][rows], rtol=1e-3)
    for name, weights in one.network.state_dict().items():
        if "running_" in name or "num_batches" in name:  # of one process's own chunks
            continue
        torch.testing.assert_close(saved.network.state_dict()[name], weights, rtol=1e-2, atol=1e-3)
    if one.linear is not None:
        for name, values in one.linear.tensors().items():
            torch.testing.assert_close(first["linear"][name], values, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("n", "processes"), [(4, 2), (5, 2), (2, 3), (7, 1)])
def test_processes_share_the_chunks_of_an_epoch(n, processes):
    orders = [EpochOrder(n, 3, Devices(torch.device("cpu"), processes, rank=rank)) for rank in range(processes)]
    for order in orders:
        order.set_epoch(5)
    taken = [list(order) for order in orders]
    assert {len(part) for part in taken} == {len(orders[0])} == {int(np.ceil(n / processes))}
    in_turn = [taken[i % processes][i // processes] for i in range(n)]
    assert in_turn == np.random.default_rng((3, 5)).permutation(n).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices=0 must be at least 1"),
        ({"num_nodes": 0}, "num_nodes=0 must be at least 1"),
        ({"devices": 2, "strategy": "ddp_spawn"}, r"strategy='ddp_spawn' is not known; there are 'auto', 'ddp'"),
    ],
)
def test_refused(sections, options, message):
    with pytest.raises(ValueError, match=message):
        hggep.tl.fit(sections, genes=10, config=TINY, **options, **CPU)


def test_as_many_processes_as_devices(sections, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "TORCHELASTIC_RUN_ID": 1, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"devices=2, num_nodes=1 do not fit .*world size \(3\)"):
        hggep.tl.fit(sections, genes=10, config=TINY, devices=2, **CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_devices_of_one_name(sections):
    with pytest.raises(ValueError, match=r"device='cuda:1' is not there"):
        hggep.tl.fit(sections, genes=10, config=TINY, devices=2, **{**CPU, "device": "cuda:1"})


@pytest.mark.parametrize("option", [{"devices": 2}, {"strategy": "ddp"}, {"num_nodes": 2}])
def test_baselines_have_no_use_for_it(sections, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}= is for method='hggep'"):
        hggep.tl.fit(sections, method="gene_mean", genes=10, **option, **CPU)
