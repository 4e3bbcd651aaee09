import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hggep_sc.config import Config
from hggep_sc.metrics import pearson
from hggep_sc.nn import Batch
from hggep_sc.nn.hggep import HGGEPNetwork

N, GENES = 12, 7
SMALL = {"patch_size": 32, "width": 16, "vit_heads": 4, "vit_depth": 1, "lstm_layers": 2}
MODULES = ("gem", "cbam", "vit", "ham", "lstm")


def inputs(n_fields, n=N, size=32):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (n, n_fields, 3, size, size), generator=generator, dtype=torch.uint8)
    return patches, 100 * torch.rand(n, 2, generator=generator)


def small(preset, seed=0, **overrides):
    """A small network in eval mode that has seen the patches once and tells the spots well apart."""
    config = Config.from_preset(preset, **{**SMALL, **overrides})
    torch.manual_seed(seed)
    network = HGGEPNetwork(config, GENES)
    patches, positions = inputs(len(config.fields_px))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # the statistics of these patches alone
        network.encode(patches)
        for norm in norms:
            norm.momentum = 0.1
        for reduce in network.reduce:
            reduce.weight *= 10
        if network.lstm is not None:
            for parameter in network.lstm.parameters():
                parameter *= 3
        if network.basis is not None:
            network.basis.normal_()
        network.gene_mean.normal_()
    return network.eval(), patches, positions


def fresh_corrections(network):
    """GEM and HAM of a residual network as they start."""
    return [network.gem_scale, network.ham.conv2.lin.weight, network.ham.conv2.bias]


def corrected(network):
    with torch.no_grad():
        for correction in fresh_corrections(network):
            correction.normal_(std=0.3)
    return network


def batch_for(network, patches, positions):
    generator = torch.Generator().manual_seed(1)
    n = len(patches)
    return Batch(
        patches=patches,
        positions=positions,
        expression=torch.rand(n, GENES, generator=generator),
        counts=torch.poisson(2 * torch.rand(n, GENES, generator=generator), generator=generator),
        size_factors=0.5 + torch.rand(n, generator=generator),
        observed=torch.arange(n) % 3 > 0,
    )


def record(shapes, name, module, given, out):
    shapes[name] = tuple(getattr(out, "shape", ()))


def test_paper_sizes():
    config = Config.from_preset("paper")
    with torch.device("meta"):  # shapes alone
        network = HGGEPNetwork(config, 785).eval()
        shapes = {}
        for name, module in network.named_modules():
            module.register_forward_hook(partial(record, shapes, name))
        out = network(torch.zeros(9, 1, 3, 112, 112, dtype=torch.uint8), torch.zeros(9, 2))
    expected = {
        "gem.traditional": (9, 6, 56, 56),
        "gem.difference": (9, 6, 56, 56),
        "gem": (9, 3, 56, 56),
        "backbone.conv1": (9, 24, 28, 28),
        "backbone.stage2": (9, 48, 14, 14),
        "backbone.stage3": (9, 96, 7, 7),
        "backbone.stage4": (9, 192, 4, 4),
        "backbone.conv5": (9, 1024, 4, 4),
        "cbam.0": (9, 96, 7, 7),
        "cbam.1": (9, 192, 4, 4),
        "cbam.2": (9, 1024, 4, 4),
        **{f"reduce.{i}": (9, 1024) for i in range(3)},
        **{f"vit.{i}.{block}": (9, 1024) for i in range(3) for block in range(4)},
        "ham.conv1": (9, 512),
        "ham.conv2": (9, 1024),
        "head": (9, 785),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert [len(stack) for stack in network.vit] == [4, 4, 4]
    assert {block.attention.heads for stack in network.vit for block in stack} == {8}
    assert network.ham.n_neighbors == 3
    assert (network.lstm.input_size, network.lstm.hidden_size, network.lstm.num_layers) == (1024, 1024, 4)
    assert network.gem.difference[0].theta == 0.7
    assert [c.channel.mlp[0].out_features for c in network.cbam] == [96 // 16, 192 // 16, 1024 // 16]
    assert out.expression.shape == (9, 785)
    assert out.latent.shape == (9, 1024)
    assert all(parameter.shape == (9, 785) for parameter in out.counts)
    assert network.basis is None
    assert network.gem_scale is None


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_shapes_of_a_section(preset):
    network, patches, positions = small(preset)
    encoded = network.encode(patches)
    out = network.decode(encoded, positions)
    assert encoded.shape == (N, 3, 16)
    assert out.expression.shape == (N, GENES)
    assert out.latent.shape == (N, 16)
    mean, dispersion, dropout = out.counts
    assert mean.shape == dispersion.shape == dropout.shape == (N, GENES)
    assert (mean > 0).all()
    assert (dispersion > 0).all()
    assert ((dropout >= 0) & (dropout <= 1)).all()


def test_forward_of_the_paper():
    """Items 3 to 9 of the specification, put together from the modules by hand."""
    network, patches, positions = small("paper")
    with torch.no_grad():
        maps = network.backbone(network.gem(patches[:, 0].float() / 255))
        stages = [c(m).mean((2, 3)) for c, m in zip(network.cbam, (maps.stage3, maps.stage4, maps.conv5), strict=True)]
        z = [vit(r(s)) for vit, r, s in zip(network.vit, network.reduce, stages, strict=True)]
        z.append(network.ham(z[0] + z[1] + z[2], positions))
        steps, _ = network.lstm(torch.stack(z, dim=1))
        assert steps.shape == (N, 4, 16)
        latent = (steps[:, 0] + steps[:, 1] + steps[:, 2] + steps[:, 3]) / 4
        expected = network.gene_mean + network.head(network.head_norm(latent))
        out = network(patches, positions)
    torch.testing.assert_close(out.latent, latent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.expression, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("module", MODULES)
def test_a_module_switched_off_is_absent(preset, module):
    whole, *_ = small(preset)
    network, patches, positions = small(preset, **{module: False})
    assert torch.isfinite(network(patches, positions).expression).all()
    parts = {name.split(".")[0] for name in whole.state_dict()}
    left = {name.split(".")[0] for name in network.state_dict()}
    assert {part for part in parts if part.startswith(module)}
    assert parts - left == {part for part in parts if part.startswith(module)}
    assert not any(name.startswith(module) for name, _ in network.named_parameters())


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_backbone_and_head_alone(preset):
    network, patches, positions = small(preset, **dict.fromkeys(MODULES, False), count_weight=0.0)
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {
        "backbone",
        "reduce",
        "head_norm",
        "head",
    }
    out = network(patches, positions)
    assert out.counts is None
    assert torch.isfinite(out.expression).all()


def without(network, **switches):
    """The same network with modules switched off, sharing every weight that is left."""
    other = HGGEPNetwork(network.config.replace(**switches), GENES)
    other.load_state_dict(network.state_dict(), strict=False)
    return other.eval()


def test_residual_network_starts_without_gem():
    network, patches, positions = small("default")
    assert all((correction == 0).all() for correction in fresh_corrections(network))
    expected = without(network, gem=False)(patches, positions)
    torch.testing.assert_close(network(patches, positions).expression, expected.expression)
    with torch.no_grad():
        network.gem_scale.fill_(0.5)
    assert not torch.allclose(network(patches, positions).expression, expected.expression, atol=1e-3)


def test_residual_network_starts_without_ham():
    # without the LSTM, which reads one step more where there is a HAM. The mean over the steps differs by a
    # factor, which the head's norm takes out
    network, patches, positions = small("default", lstm=False)
    with torch.no_grad():
        for reduce in network.reduce:
            reduce.weight *= 10  # large beside the epsilon of the norm
    expected = without(network, ham=False, gem=False)(patches, positions)
    torch.testing.assert_close(network(patches, positions).expression, expected.expression, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        network.ham.conv2.lin.weight.normal_(std=10.0)
    assert not torch.allclose(network(patches, positions).expression, expected.expression, atol=1e-2)


def test_residual_lstm_adds_to_the_mean():
    network, patches, positions = small("default")
    expected = without(network, lstm=False)(patches, positions)
    assert not torch.allclose(network(patches, positions).expression, expected.expression, atol=1e-3)
    with torch.no_grad():
        for parameter in network.lstm.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(patches, positions).latent, expected.latent)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_encode_in_batches(preset):
    network, patches, positions = small(preset)
    with torch.no_grad():
        whole = network.encode(patches)
        parts = torch.cat([network.encode(part) for part in patches.split(5)])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
        assert whole.std(0).min() > 0
        found = network.decode(parts, positions).expression
        torch.testing.assert_close(found, network(patches, positions).expression, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_permuted_spots(preset):
    network, patches, positions = small(preset)
    if preset == "default":
        corrected(network)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = network(patches, positions)
        found = network(patches[order], positions[order])
    assert expected.expression.std(0).min() > 1e-4
    torch.testing.assert_close(found.expression, expected.expression[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latent, expected.latent[order], atol=1e-5, rtol=1e-4)


def test_positions_reach_the_prediction_through_the_hypergraph_alone():
    network, patches, positions = small("default")
    corrected(network)
    elsewhere = positions.flip(0)
    assert not torch.allclose(network(patches, positions).expression, network(patches, elsewhere).expression)
    plain = without(network, ham=False)
    assert torch.equal(plain(patches, positions).expression, plain(patches, elsewhere).expression)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_one_spot(preset):
    network, patches, positions = small(preset)
    out = network(patches[:1], positions[:1])
    assert out.expression.shape == (1, GENES)
    assert torch.isfinite(out.expression).all()


def test_low_rank_output():
    network, patches, positions = small("default", n_components=4)
    out = network(patches, positions)
    scores = network.head(network.head_norm(out.latent)).detach().numpy()
    assert scores.shape == (N, 4)
    expected = network.gene_mean.numpy() + scores @ network.basis.numpy()
    np.testing.assert_allclose(out.expression.detach().numpy(), expected, atol=1e-5)
    centred = (out.expression - network.gene_mean).detach()
    assert torch.linalg.matrix_rank(centred, rtol=1e-4) <= 4


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_start_from(preset):
    network, patches, positions = small(preset, n_components=4 if preset == "default" else None)
    gene_mean, count_mean = torch.linspace(0.5, 3, GENES), torch.linspace(0.1, 20, GENES)
    basis = torch.eye(4, GENES) if preset == "default" else None
    network.start_from(gene_mean, basis, count_mean)
    with torch.no_grad():
        for weight in (network.head.weight, network.head.bias, network.count_heads.weight):
            weight.zero_()
        out = network(patches, positions)
    torch.testing.assert_close(out.expression, gene_mean.expand(N, -1))
    torch.testing.assert_close(out.counts.mean, count_mean.expand(N, -1))
    assert basis is None or torch.equal(network.basis, basis)


def test_pixels_are_scaled_as_the_weights_ask():
    network, patches, _ = small("default")
    shift, scale = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    expected = network.encode(((patches.float() / 255 - shift) / scale) * 255)
    network.pixel_mean.copy_(shift)
    network.pixel_std.copy_(scale)
    torch.testing.assert_close(network.encode(patches), expected, atol=1e-4, rtol=1e-4)


CONFIGS = [
    pytest.param("default", {}, id="default"),
    pytest.param("default", {"count_loss": "nb"}, id="default-nb"),
    pytest.param("paper", {}, id="paper"),
    pytest.param("paper", {"count_loss": "nb", "correlation_weight": 0.3}, id="paper-nb"),
]


@pytest.mark.parametrize(("preset", "overrides"), CONFIGS)
def test_loss_is_the_weighted_sum_of_its_terms(preset, overrides):
    network, patches, positions = small(preset, **overrides)
    config, batch = network.config, batch_for(network, patches, positions)
    terms = network.loss(batch, torch.Generator())
    wanted = {"loss", "mse", config.count_loss} | ({"correlation"} if config.correlation_weight else set())
    assert set(terms) == wanted
    seen = batch.observed.numpy()
    predicted = network(patches, positions).expression.detach().numpy()[seen]
    observed = batch.expression.numpy()[seen]
    assert terms["mse"].item() == pytest.approx(((predicted - observed) ** 2).mean(), rel=1e-5)
    expected = terms["mse"] + config.count_weight * terms[config.count_loss]
    if config.correlation_weight:
        assert terms["correlation"].item() == pytest.approx(1 - pearson(predicted, observed).mean(), rel=1e-4)
        expected = expected + config.correlation_weight * terms["correlation"]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("weight", ["count_weight", "correlation_weight"])
def test_a_term_of_weight_0_is_left_out(weight):
    network, patches, positions = small("default", **{weight: 0.0})
    terms = network.loss(batch_for(network, patches, positions), torch.Generator())
    assert ("zinb" in terms) == (weight != "count_weight")
    assert ("correlation" in terms) == (weight != "correlation_weight")


@pytest.mark.parametrize(("preset", "overrides"), CONFIGS)
@pytest.mark.parametrize("value", [float("nan"), 1e6, 0.0])
def test_spots_not_observed_never_reach_the_loss(preset, overrides, value):
    network, patches, positions = small(preset, dropout=0.0, **overrides)
    batch = batch_for(network, patches, positions)
    other = copy.deepcopy(batch)
    for targets in (other.expression, other.counts, other.size_factors):
        targets[~other.observed] = value
    network.train()
    found = []
    for given in (batch, other):
        network.zero_grad()
        terms = network.loss(given, torch.Generator())
        terms["loss"].backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        found.append((terms, {name: g.clone() for name, g in gradients.items()}))
    (terms, gradients), (other_terms, other_gradients) = found
    assert {name: t.item() for name, t in other_terms.items()} == {name: t.item() for name, t in terms.items()}
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(other_gradients[name], gradient), name
    everything = network.loss(replace(batch, observed=torch.ones(N, dtype=torch.bool)), torch.Generator())
    assert everything["loss"].item() != terms["loss"].item()  # all spots: another loss


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_gradients_reach_every_parameter(preset):
    network, patches, positions = small(preset)
    if preset == "default":
        corrected(network)
    network.train()
    network.loss(batch_for(network, patches, positions), torch.Generator())["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # entries after which a batch normalisation or softmax takes out a constant have none
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {name.split(".")[0] for name, _ in network.named_parameters()}


def test_positions_and_centres_of_a_section():
    xy = np.array([[1e5, 2e5], [1e5 + 3, 2e5 + 1], [1e5 + 6, 2e5 + 5]])
    positions = HGGEPNetwork.positions(SimpleNamespace(xy=xy))
    np.testing.assert_allclose(positions, [[-3, -2], [0, -1], [3, 3]])
    np.testing.assert_array_equal(HGGEPNetwork.centres(xy), xy)
