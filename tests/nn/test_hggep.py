import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import LEARNING
from hggep_sc.config import Config
from hggep_sc.metrics import pearson
from hggep_sc.nn import Batch, shufflenet_encoder
from hggep_sc.nn.hggep import OUTLIER, HGGEPNetwork

N, GENES = 12, 7
SMALL = {"patch_size": 32, "width": 16, "vit_heads": 4, "vit_depth": 1, "lstm_layers": 2}
MODULES = ("gem", "cbam", "vit", "ham", "lstm")
VARIANTS = {
    "default": {"count_weight": 0.05},
    "learning": {"count_weight": 0.05, **LEARNING},  # every module of a residual network
    "paper": {},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def inputs(n_fields, n=N, size=32):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (n, n_fields, 3, size, size), generator=generator, dtype=torch.uint8)
    return patches, 100 * torch.rand(n, 2, generator=generator)


def network_of(config, n_genes=GENES):
    encoder = shufflenet_encoder(config)
    return HGGEPNetwork(config, n_genes, encoder=encoder, groups=encoder.groups, n_fields=len(config.fields_px))


def fresh(variant, seed=0, **overrides):
    """A small network in eval mode, as it starts, whose batch statistics are those of the patches."""
    preset = "paper" if variant == "paper" else "default"
    config = Config.from_preset(preset, **{**SMALL, **VARIANTS[variant], **overrides})
    torch.manual_seed(seed)
    network = network_of(config)
    patches, positions = inputs(len(config.fields_px))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        network.encoder.backbone.train()
        for norm in norms:
            norm.momentum = 1.0  # the statistics of these patches alone
        network.encode(patches)
        for norm in norms:
            norm.momentum = 0.1
        if network.basis is not None:
            network.basis.normal_()
        network.gene_mean.normal_()
    return network.eval(), patches, positions


def small(variant, seed=0, **overrides):
    """A fresh network whose modules have left their start: it tells the spots well apart."""
    network, patches, positions = fresh(variant, seed, **overrides)
    with torch.no_grad():
        features = network.encode(patches)
        if network.config.standardize:
            network.standardise_features(features.mean(0), features.std(0) + 1e-3)
        else:
            for reduce in network.reduce:
                reduce.weight *= 10
        if network.lstm is not None:
            for parameter in network.lstm.parameters():
                parameter *= 3
        for name, parameter in network.named_parameters():
            if not parameter.any() and "backbone" not in name:
                parameter.normal_(std=0.3)
    return network, patches, positions


def batch_for(network, patches, positions):
    generator = torch.Generator().manual_seed(1)
    n = len(patches)
    return Batch(
        patches=patches,
        features=None,
        positions=positions,
        expression=torch.rand(n, GENES, generator=generator),
        counts=torch.poisson(2 * torch.rand(n, GENES, generator=generator), generator=generator),
        size_factors=0.5 + torch.rand(n, generator=generator),
        observed=torch.nonzero(torch.arange(n) % 3)[:, 0],
    )


def record(shapes, name, module, given, out):
    shapes[name] = tuple(getattr(out, "shape", ()))


def test_paper_sizes():
    config = Config.from_preset("paper")
    with torch.device("meta"):  # shapes alone
        network = network_of(config, 785).eval()
        shapes = {}
        for name, module in network.named_modules():
            module.register_forward_hook(partial(record, shapes, name))
        out = network(torch.zeros(9, 1, 3, 112, 112, dtype=torch.uint8), torch.zeros(9, 2))
    expected = {
        "encoder.gem.traditional": (9, 6, 56, 56),
        "encoder.gem.difference": (9, 6, 56, 56),
        "encoder.gem": (9, 3, 56, 56),
        "encoder.backbone.conv1": (9, 24, 28, 28),
        "encoder.backbone.stage2.3": (9, 48, 14, 14),
        "encoder.backbone.stage3.7": (9, 96, 7, 7),
        "encoder.backbone.stage4.3": (9, 192, 4, 4),
        "encoder.backbone.conv5": (9, 1024, 4, 4),
        "encoder.cbam.0": (9, 96, 7, 7),
        "encoder.cbam.1": (9, 192, 4, 4),
        "encoder.cbam.2": (9, 1024, 4, 4),
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
    assert network.encoder.gem.difference[0].theta == 0.7
    assert [c.channel.mlp[0].out_features for c in network.encoder.cbam] == [96 // 16, 192 // 16, 1024 // 16]
    assert out.expression.shape == (9, 785)
    assert out.latent.shape == (9, 1024)
    assert all(parameter.shape == (9, 785) for parameter in out.counts)
    assert network.basis is None
    assert network.encoder.gem_scale is network.encoder.cbam_scale is network.lstm_scale is None


@variants
def test_shapes_of_a_section(variant):
    network, patches, positions = small(variant)
    encoded = network.encode(patches)
    out = network.decode(encoded, positions)
    assert encoded.shape == (N, len(network.config.fields_px), sum(network.groups))
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
        encoder = network.encoder
        _, *maps = encoder.backbone(encoder.gem(patches[:, 0].float() / 255))  # stages 3 and 4, last convolution
        stages = [c(m).mean((2, 3)) for c, m in zip(encoder.cbam, maps, strict=True)]
        z = [vit(r(s)) for vit, r, s in zip(network.vit, network.reduce, stages, strict=True)]
        z.append(network.ham(z[0] + z[1] + z[2], positions))
        steps, _ = network.lstm(torch.stack(z, dim=1))
        assert steps.shape == (N, 4, 16)
        latent = (steps[:, 0] + steps[:, 1] + steps[:, 2] + steps[:, 3]) / 4
        expected = network.gene_mean + network.head(network.head_norm(latent))
        out = network(patches, positions)
    torch.testing.assert_close(out.latent, latent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.expression, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["default", "learning"])
def test_forward_of_a_residual_network(variant):
    """Tokens from all fields of view, and modules that add, put together by hand."""
    network, patches, positions = small(variant)
    with torch.no_grad():
        fields = [network.encoder(patches[:, i]) for i in range(4)]
        fields = [
            ((f - mean) / std).clamp(-OUTLIER, OUTLIER)
            for f, mean, std in zip(fields, network.feature_mean, network.feature_std, strict=True)
        ]
        ends = np.cumsum([0, 48, 96, 192])
        tokens = [torch.cat([f[:, ends[i] : ends[i + 1]] for f in fields], dim=1) for i in range(3)]
        z = [vit(reduce(t)) for vit, reduce, t in zip(network.vit, network.reduce, tokens, strict=True)]
        h = z[0] + z[1] + z[2]
        h = h + network.ham(h, positions)
        steps, _ = network.lstm(torch.stack([*z, h], dim=1))
        latent = h + network.lstm_scale * steps.mean(1)
        expected = network.gene_mean + network.head(network.head_norm(latent)) @ network.basis
        out = network(patches, positions)
    torch.testing.assert_close(out.latent, latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.expression, expected, atol=1e-4, rtol=1e-4)


def parts_of(names):
    return {name.removeprefix("encoder.").split(".")[0] for name in names}


@pytest.mark.parametrize("variant", ["learning", "paper"])
@pytest.mark.parametrize("module", MODULES)
def test_a_module_switched_off_is_absent(variant, module):
    whole, *_ = small(variant)
    network, patches, positions = small(variant, **{module: False})
    assert torch.isfinite(network(patches, positions).expression).all()
    parts, left = parts_of(whole.state_dict()), parts_of(network.state_dict())
    gone = {part for part in parts if part.startswith(module)}
    assert gone
    assert parts - left == gone


@variants
def test_backbone_and_head_alone(variant):
    network, patches, positions = small(variant, **dict.fromkeys(MODULES, False), count_weight=0.0)
    assert parts_of(name for name, _ in network.named_parameters()) == {"backbone", "reduce", "head_norm", "head"}
    out = network(patches, positions)
    assert out.counts is None
    assert torch.isfinite(out.expression).all()
    assert out.expression.std(0).min() > 1e-4


def without(network, **switches):
    """The same network with modules switched off, sharing every weight that is left."""
    other = network_of(network.config.replace(**switches))
    other.load_state_dict(network.state_dict(), strict=False)
    return other.eval()


@pytest.mark.parametrize("variant", ["default", "learning"])
def test_a_residual_network_starts_at_the_genes_means(variant):
    network, patches, positions = fresh(variant)
    assert torch.equal(network(patches, positions).expression, network.gene_mean.expand(N, -1))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_a_residual_network_starts_at_nothing(module):
    network, patches, positions = fresh("learning")
    features = network.encode(patches).detach()
    network.standardise_features(features.mean(0), features.std(0) + 1e-3)
    torch.nn.init.normal_(network.head.weight)
    names = [name for name, p in network.named_parameters() if not p.any() and "norm" not in name]
    awake = copy.deepcopy(network)
    with torch.no_grad():
        for name in names:
            if name.removeprefix("encoder.").startswith(module):
                awake.get_parameter(name).normal_()
        expected = without(network, **{module: False})(patches, positions)
        found, moved = network(patches, positions), awake(patches, positions)
    assert expected.expression.std(0).min() > 1e-2
    torch.testing.assert_close(found.latent, expected.latent)
    torch.testing.assert_close(found.expression, expected.expression)
    assert not torch.allclose(moved.expression, expected.expression, atol=1e-3)


def test_features_far_out_are_cut_off():
    network, patches, positions = small("default")
    features = network.encode(patches).detach()
    far, cut = features.clone(), features.clone()
    far[3, 1, 5], far[4, 0, 7] = 1e6, -1e6
    cut[3, 1, 5] = network.feature_mean[1, 5] + OUTLIER * network.feature_std[1, 5]
    cut[4, 0, 7] = network.feature_mean[0, 7] - OUTLIER * network.feature_std[0, 7]
    found = network.decode(far, positions).expression
    torch.testing.assert_close(found, network.decode(cut, positions).expression)
    assert not torch.allclose(found, network.decode(features, positions).expression)


@variants
def test_encode_in_batches(variant):
    network, patches, positions = small(variant)
    with torch.no_grad():
        whole = network.encode(patches)
        parts = torch.cat([network.encode(part) for part in patches.split(5)])
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)  # convolutions round by the size of a batch
        assert (whole.std(0) > 0).float().mean() > 0.9
        found = network.decode(parts, positions).expression
        torch.testing.assert_close(found, network(patches, positions).expression, atol=1e-4, rtol=1e-4)


@variants
def test_permuted_spots(variant):
    network, patches, positions = small(variant)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = network(patches, positions)
        found = network(patches[order], positions[order])
    assert expected.expression.std(0).min() > 1e-4
    torch.testing.assert_close(found.expression, expected.expression[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latent, expected.latent[order], atol=1e-5, rtol=1e-4)


def test_positions_reach_the_prediction_through_the_hypergraph_alone():
    network, patches, positions = small("default")
    elsewhere = positions.flip(0)
    assert not torch.allclose(network(patches, positions).expression, network(patches, elsewhere).expression)
    plain = without(network, ham=False)
    assert torch.equal(plain(patches, positions).expression, plain(patches, elsewhere).expression)


@variants
def test_one_spot(variant):
    network, patches, positions = small(variant)
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


@variants
def test_start_from(variant):
    low_rank = variant != "paper"
    network, patches, positions = small(variant, n_components=4 if low_rank else None)
    gene_mean, count_mean = torch.linspace(0.5, 3, GENES), torch.linspace(0.1, 20, GENES)
    basis = torch.eye(4, GENES) if low_rank else None
    network.start_from(gene_mean, basis, count_mean)
    with torch.no_grad():
        for weight in (network.head.weight, network.head.bias, network.count_heads.weight):
            weight.zero_()
        out = network(patches, positions)
    torch.testing.assert_close(out.expression, gene_mean.expand(N, -1))
    torch.testing.assert_close(out.counts.mean, count_mean.expand(N, -1))
    assert basis is None or torch.equal(network.basis, basis)


CONFIGS = [
    pytest.param("default", {}, id="default"),
    pytest.param("default", {"count_loss": "nb"}, id="default-nb"),
    pytest.param("learning", {}, id="learning"),
    pytest.param("paper", {}, id="paper"),
    pytest.param("paper", {"count_loss": "nb", "correlation_weight": 0.3}, id="paper-nb"),
]


@pytest.mark.parametrize(("variant", "overrides"), CONFIGS)
def test_loss_is_the_weighted_sum_of_its_terms(variant, overrides):
    network, patches, positions = small(variant, **overrides)
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


def test_loss_of_features_is_that_of_their_patches():
    network, patches, positions = small("default")
    batch = batch_for(network, patches, positions)
    features = replace(batch, patches=None, features=network.encode(patches))
    assert network.loss(features, torch.Generator()) == network.loss(batch, torch.Generator())


@pytest.mark.parametrize("weight", ["count_weight", "correlation_weight"])
def test_a_term_of_weight_0_is_left_out(weight):
    network, patches, positions = small("default", **{weight: 0.0})
    terms = network.loss(batch_for(network, patches, positions), torch.Generator())
    assert ("zinb" in terms) == (weight != "count_weight")
    assert ("correlation" in terms) == (weight != "correlation_weight")


@pytest.mark.parametrize(("variant", "overrides"), CONFIGS)
@pytest.mark.parametrize("value", [float("nan"), 1e6, 0.0])
def test_spots_not_observed_never_reach_the_loss(variant, overrides, value):
    network, patches, positions = small(variant, dropout=0.0, **overrides)
    batch = batch_for(network, patches, positions)
    other = copy.deepcopy(batch)
    unseen = np.setdiff1d(np.arange(N), other.observed)
    for targets in (other.expression, other.counts, other.size_factors):
        targets[unseen] = value
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
    everything = network.loss(replace(batch, observed=torch.arange(N)), torch.Generator())
    assert everything["loss"].item() != terms["loss"].item()  # all spots: another loss


@variants
def test_gradients_reach_every_parameter(variant):
    network, patches, positions = small(variant)
    network.train()
    network.loss(batch_for(network, patches, positions), torch.Generator())["loss"].backward()
    learnt = {name: p for name, p in network.named_parameters() if "backbone" not in name or variant != "default"}
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(learnt)
    for name, parameter in learnt.items():
        assert torch.isfinite(parameter.grad).all(), name
    # entries after which a batch normalisation or softmax takes out a constant have none
    assert parts_of(name for name, p in learnt.items() if p.grad.abs().sum() > 0) == parts_of(learnt)


def test_positions_and_centres_of_a_section():
    xy = np.array([[1e5, 2e5], [1e5 + 3, 2e5 + 1], [1e5 + 6, 2e5 + 5]])
    positions = HGGEPNetwork.positions(SimpleNamespace(xy=xy))
    np.testing.assert_allclose(positions, [[-3, -2], [0, -1], [3, 3]])
    np.testing.assert_array_equal(HGGEPNetwork.centres(xy), xy)
