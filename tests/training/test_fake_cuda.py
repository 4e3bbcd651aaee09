"""Every network's training step and prediction on a GPU that is not there: a tensor left on the host is found.

The GPU is torch's meta device, which computes shapes alone, under the name of a GPU. Tensors of `FakeTensorMode` have
that name by themselves, but where torch is built without CUDA they have no gradients and no indexing; and they let a
convolution take its weights from the host.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from helpers import TINY_RIVALS, TINY_SPOT_RIVALS, make_adata
from hggep_sc import methods, settings
from hggep_sc.features.encoders import ObsmEncoder
from hggep_sc.features.store import describe_section
from hggep_sc.methods.baselines import BaselineConfig, Ridge
from hggep_sc.methods.baselines.trunk import Trunk
from hggep_sc.methods.hggep import HGGEP
from hggep_sc.methods.rivals.base import RivalPlan
from hggep_sc.nn import Ensemble
from hggep_sc.section import open_sections
from hggep_sc.section.fingerprint import Fingerprint
from hggep_sc.training.augmentation import _stains
from hggep_sc.training.confidence import feature_statistics
from hggep_sc.training.cross_fit import predict_data
from small_networks import (
    N_GENES,
    N_SPOTS,
    NETWORKS,
    data_for,
    data_of_patches,
    networks,
    plan_and_batch,
    small_network,
)

GPU, META = torch.device("cuda", 0), torch.device("meta")
aten = torch.ops.aten


def is_gpu(value):
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


class LeftOnHostError(AssertionError):
    pass


class CalledGPU(TorchFunctionMode):
    """Whatever asks torch for the GPU gets the meta device, and is told that it is the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch._C._nn._parse_to:  # reads the arguments of `Module.to`
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != torch.device(kwargs.get("device", "cpu")).type:
            raise LeftOnHostError(f"{func.__name__} draws on {kwargs.get('device')} from {generator.device}")
        there = {name: META if is_gpu(value) else value for name, value in kwargs.items()}
        found = func(*(META if is_gpu(value) else value for value in args), **there)
        return GPU if isinstance(found, torch.device) and found == META else found


class NothingLeftOnHost(TorchDispatchMode):
    """Refuse what takes tensors from the GPU and from the host, but for copies; what is copied to the host is ones.

    An index from the host is refused, too: torch would wait for the GPU and bring it there.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # in inference mode, functions arrive that are made of others
            if (found := func.decompose(*args, **kwargs)) is not NotImplemented:
                return found
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_gpu = [tensor for tensor in tensors if tensor.is_meta]
        if on_gpu and self.downloads(func, args, kwargs):
            args = tree_map_only(Tensor, lambda t: torch.ones(t.shape, dtype=t.dtype) if t.is_meta else t, args)
        elif on_gpu and len(on_gpu) < len(tensors) and func is not aten.copy_.default:
            shapes = [tuple(tensor.shape) for tensor in tensors if not tensor.is_meta]
            raise LeftOnHostError(f"{func} on the GPU takes tensors from the host, of shapes {shapes}")
        elif on_gpu and func is aten.bincount.default:  # whose length is a matter of values
            return on_gpu[0].new_empty(args[2])
        return func(*args, **kwargs)

    @staticmethod
    def downloads(func, args, kwargs):
        if func is aten._to_copy.default:
            return torch.device(kwargs.get("device") or META).type == "cpu"
        return func is aten._local_scalar_dense.default or (func is aten.copy_.default and not args[0].is_meta)


class GeneratorOfGPU(torch.Generator):
    device = GPU


@contextmanager
def a_gpu():
    """Code in it finds a GPU."""
    generator = torch.Generator
    with pytest.MonkeyPatch.context() as patch, CalledGPU(), NothingLeftOnHost():
        # what asks the driver, past torch's modes
        patch.setattr(torch, "Generator", lambda of="cpu": GeneratorOfGPU() if is_gpu(of) else generator(of))
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        for method in ("hggep", "rivals.base"):
            patch.setattr(f"hggep_sc.methods.{method}.resolve_device", torch.device)
        patch.setattr("hggep_sc.prediction.chunks._free_memory", lambda device: 2**30)
        _stains.cache_clear()
        try:
            yield
        finally:
            _stains.cache_clear()  # a GPU that is there would get them


def all_on_gpu(tensors):
    return all(tensor.device == GPU for tensor in tensors)


def moved(plan, batch):
    """The same on the GPU."""
    return plan.to(GPU), plan.transfer_batch_to_device(batch, GPU, 0)


@networks
def test_training_and_validation(name, monkeypatch):
    monkeypatch.setattr("hggep_sc.nn.published.VIEWS", 1)  # instead of 5, which take longest of all
    plan, batch = plan_and_batch(name)
    with a_gpu():
        plan, batch = moved(plan, batch)
        plan.trainer = SimpleNamespace(**vars(plan.trainer), estimated_stepping_batches=2, max_epochs=2)
        optimizer = plan.configure_optimizers()
        optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        plan.training_step(replace(batch), 0)["loss"].backward()
        optimizer.step()
        learnt = [parameter for parameter in plan.parameters() if parameter.grad is not None]
        assert len(learnt) > 10
        assert all_on_gpu([*plan.parameters(), *plan.buffers(), *(parameter.grad for parameter in learnt)])
        assert all_on_gpu(optimizer.state[parameter]["exp_avg"] for parameter in learnt)
        with torch.inference_mode():
            plan.eval().validation_step(batch, 0)
    ((predicted, observed),) = plan._validation["A"]
    np.testing.assert_array_equal(predicted, np.ones((N_SPOTS - 1, N_GENES)))
    np.testing.assert_array_equal(observed, predicted)


@pytest.mark.parametrize("name", ["default", "paper"])
def test_statistics_and_predictions_of_training_data(name):
    """Held as features, and as patches."""
    network, config = small_network(name)
    data = data_for(network, config)
    with a_gpu():
        network.to(GPU)
        network.standardise_features(*feature_statistics(network, [data]))
        assert (predict_data(network, data) == 1).all()
        assert all_on_gpu(network.state_dict().values())


def rival_of(name):
    method = methods.get(name)
    config = method.configured_by(**{**TINY_RIVALS, **TINY_SPOT_RIVALS}[name])
    torch.manual_seed(0)
    network = method.untrained(config, N_GENES, None)
    if name == "bleep":
        network.eval().refer_to(torch.rand(7, N_GENES))
    return method(network, config, [f"G{i}" for i in range(N_GENES)], mpp=None, fingerprint=Fingerprint.empty(), seed=0)


@pytest.mark.parametrize("name", [*TINY_RIVALS, *TINY_SPOT_RIVALS])
def test_training_of_a_rival(name):
    model = rival_of(name)
    config = model.config
    network = model.network.train()
    plan = RivalPlan(network, config, 0, partial(model.optimiser, config))
    plan.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    batch = data_of_patches(config.patch_size).batch(np.arange(N_SPOTS))
    if name == "deeppt":  # whose backbone is frozen
        batch.features, batch.patches = torch.rand(N_SPOTS, 1, 1, network.n_features), None
    with a_gpu():
        plan, batch = moved(plan, batch)
        optimizer = plan.configure_optimizers()
        optimizer = optimizer[0][0] if isinstance(optimizer, tuple) else optimizer
        plan.training_step(batch, 0)["loss"].backward()
        optimizer.step()
        learnt = [parameter for parameter in plan.parameters() if parameter.grad is not None]
        assert len(learnt) > (3 if name == "deeppt" else 10)
        assert all_on_gpu([*plan.parameters(), *plan.buffers(), *(parameter.grad for parameter in learnt)])


@pytest.mark.parametrize("name", [*TINY_RIVALS, *TINY_SPOT_RIVALS])
def test_prediction_of_a_rival(name, section):
    model = rival_of(name)
    with a_gpu():
        expression, latent = model.predict(section, device="cuda", chunk_spots=16)
        assert all_on_gpu(model.network.state_dict().values())
    np.testing.assert_array_equal(expression, np.ones((len(section.xy), N_GENES)))
    assert (latent == 1).all()


@pytest.fixture
def section():
    """Thirty spots in an array, with embeddings."""
    adata = make_adata()
    adata.obsm["X_emb"] = np.ones((adata.n_obs, 6), dtype=np.float32)
    adata.obs["array_col"], adata.obs["array_row"] = (adata.obsm["spatial"] // 30).astype(int).T
    return open_sections(adata)[0]


def model_of(name):
    network, config = small_network("default" if name == "ensemble" else name)
    if name == "ensemble":
        network = Ensemble([network, small_network("default")[0]])
    return HGGEP(network, config, [f"G{i}" for i in range(N_GENES)], mpp=None, fingerprint=Fingerprint.empty())


@pytest.mark.parametrize("name", [*NETWORKS, "ensemble"])
def test_prediction(name, section):
    model = model_of(name)
    with a_gpu():
        expression, latent = model.predict(section, device="cuda", average_flips=False)
        assert all_on_gpu(model.network.state_dict().values())
    np.testing.assert_array_equal(expression, np.ones((len(section.xy), N_GENES)))
    assert (latent == 1).all()


def test_prediction_in_chunks(section):
    """Whose features wait for each other."""
    model = model_of("module")
    with a_gpu():
        expression, _ = model.predict(section, device="cuda", average_flips=False, chunk_spots=16)
    np.testing.assert_array_equal(expression, np.ones((len(section.xy), N_GENES)))


@pytest.mark.parametrize("way", ["maps", "crops"])
@pytest.mark.parametrize("name", ["default", "module", "embeddings"])
def test_features_for_training(name, way, section, monkeypatch):
    monkeypatch.setattr(settings, "feature_route", way)
    network, config = small_network("default" if name == "embeddings" else name)
    encoder = ObsmEncoder("X_emb") if name == "embeddings" else network.encoder
    fields = config.fields_px[:2]
    with a_gpu():
        found = describe_section(section, encoder, fields, config.patch_size, colours=True, device=GPU, batch_size=15)
        assert name == "embeddings" or all_on_gpu(encoder.state_dict().values())
    assert (found.encoded == 1).all()
    if name == "embeddings":
        assert found.colours is None
    else:
        assert found.encoded.shape == (30, 2, sum(encoder.groups))
        assert found.colours.shape == (30, 2, 48)


def test_features_of_a_ridge(section):
    config = BaselineConfig(patch_size=32, fields_um=None, fields_px=(32.0, 64.0))
    with a_gpu():
        found = Ridge._features(section, config, None, Trunk().eval(), GPU, 16)
    assert found.shape == (len(section.xy), 2 * (48 + 336))


class Shifted(nn.Module):
    """Adds a tensor that it makes on the host, whatever it is given."""

    def forward(self, x):
        return x + torch.ones(x.shape[1])


def on_host(*shape):
    return torch.zeros(shape)


LEFT = {  # the network, and what leaves something of it or of its batch
    "parameter": ("default", lambda plan, batch: setattr(plan.network.head, "bias", nn.Parameter(on_host(N_GENES)))),
    "weights of a convolution": ("learning", lambda plan, batch: plan.network.encoder.backbone.conv1.to("cpu")),
    "buffer": ("default", lambda plan, batch: setattr(plan.network, "gene_mean", on_host(N_GENES))),
    "batch": ("default", lambda plan, batch: setattr(batch, "expression", on_host(N_SPOTS, N_GENES))),
    "index": ("default", lambda plan, batch: setattr(batch, "observed", on_host(N_SPOTS - 1).long())),
    "made in forward": ("default", lambda plan, batch: plan.network.head_norm.append(Shifted())),
    "generator": ("default", lambda plan, batch: setattr(plan, "_device", torch.device("cpu"))),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_on_the_host_is_found(what):
    name, leave = LEFT[what]
    plan, batch = plan_and_batch(name)
    with a_gpu():
        plan, batch = moved(plan, batch)
        leave(plan, batch)
        with pytest.raises(LeftOnHostError):
            plan.training_step(batch, 0)
