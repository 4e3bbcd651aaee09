import copy
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import CPU, bfloat16
from hggep_sc import HGGEP, tl
from hggep_sc.config import Config
from hggep_sc.nn.losses import zinb_nll
from hggep_sc.nn.published import CrossDifference, PublishedNetwork, adjacency, hyperedges
from hggep_sc.nn.views import augment
from hggep_sc.section.fingerprint import Fingerprint


@pytest.fixture(scope="module")
def stored(shared):
    with np.load(shared / "reference" / "parity_c2_32spots.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def filled(shared):
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    network = PublishedNetwork(50)
    formula.fill(network)
    return network.eval()


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return PublishedNetwork(7)


def assert_close(found, expected, name):
    """Within 1e-4 of the largest stored value; the store holds the first spots of some intermediates."""
    error = (found[: len(expected)] - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, f"{name}: {error:.1e}"


def as_images(patches):
    """The stored patches are (channel, x, y); the network takes (field, channel, row, column)."""
    return patches.transpose(-1, -2).unsqueeze(1)


# ---- parity -----------------------------------------------------------------------------------------------


def test_state_dict_has_the_published_entries(shared, filled):
    lines = (shared / "reference" / "state_dict_keys.tsv").read_text().splitlines()
    expected = dict(line.split("\t") for line in lines)
    found = {name: "x".join(map(str, value.shape)) for name, value in filled.state_dict().items()}
    assert found == expected


def test_backbone_parity(filled, stored):
    modules = {
        "gem": filled.conv0,
        "stage2": filled.layer2,
        "stage3": filled.layer3,
        "stage4": filled.layer4,
        "conv5": filled.layer5,
        "down4": filled.down4,
        "vit1": filled.ViT1,
    }
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        filled(as_images(stored["patches"]), stored["loc"])
    for hook in hooks:
        hook.remove()
    assert outputs.keys() == modules.keys()
    for name, output in outputs.items():
        assert_close(output, stored[name], name)


def test_hypergraph_parity(filled, stored):
    adjacent = torch.from_numpy(adjacency(stored["loc"].numpy()))
    assert torch.equal(adjacent, stored["adjacency"])  # tied spots: see the docstring about processors
    with torch.no_grad():
        encoded = filled.encode(as_images(stored["patches"]))
        features = torch.stack(filled.attend(encoded, stored["loc"])).sum(0)
        index, weight = hyperedges(features, adjacent)
        assert torch.equal(index, stored["edge_index"])
        assert_close(weight, stored["edge_weight"], "edge_weight")
        assert weight.dtype == torch.float32
        assert_close(filled.mix(features, stored["loc"]), stored["hgnn"], "hgnn")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_output_parity(filled, stored, dtype):
    with torch.no_grad():
        out = filled(as_images(stored["patches"]).to(dtype), stored["loc"])
    assert_close(out.latent, stored["latent"], "latent")
    assert_close(out.expression, stored["pred"], "pred")
    assert_close(out.counts.mean, stored["zinb_mean"], "zinb_mean")
    assert_close(out.counts.dispersion, stored["zinb_disp"], "zinb_disp")
    assert_close(out.counts.dropout, stored["zinb_pi"], "zinb_pi")


def test_encode_goes_by_batches(filled, stored):
    patches = as_images(stored["patches"][:6])
    with torch.no_grad():
        parts = torch.cat([filled.encode(patches[:2]), filled.encode(patches[2:])])
        torch.testing.assert_close(parts, filled.encode(patches), rtol=1e-4, atol=1e-4)
    assert parts.shape == (6, 3, 1024)


# ---- parts ------------------------------------------------------------------------------------------------


def test_cross_difference_by_its_formula():
    layer = CrossDifference()
    x = torch.rand(1, 3, 8, 6)
    w = layer.conv.weight.detach().numpy()[:, :, 0].astype(float)  # out, in, (up, left, centre, right, down)
    padded = np.pad(x[0].numpy().astype(float), ((0, 0), (1, 1), (1, 1)))
    expected = np.empty((3, 4, 3))
    for row in range(4):
        for column in range(3):
            r, c = 2 * row + 1, 2 * column + 1
            taps = [(r - 1, c), (r, c - 1), (r, c), (r, c + 1), (r + 1, c)]
            for out in range(3):
                convolved = sum(w[out, i, n] * padded[i, y, x] for i in range(3) for n, (y, x) in enumerate(taps))
                difference = 0.7 * sum(padded[i, r, c] * w[out, i].sum() for i in range(3))
                expected[out, row, column] = convolved - difference
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-6)


def test_adjacency_of_a_grid():
    x, y = np.meshgrid(np.arange(7), np.arange(6), indexing="ij")
    positions = np.column_stack([x.ravel(), y.ravel()])
    adjacent = adjacency(positions)
    for i, (column, row) in enumerate(positions):
        offsets = np.abs(positions[adjacent[i] > 0] - positions[i])
        if 0 < column < 6 and 0 < row < 5:  # the ring around it
            assert len(offsets) == 8
            assert (offsets.max(1) == 1).all()
        assert (offsets.sum(1) > 0).all()
        assert (np.square(offsets).sum(1) <= 4).all()


def test_adjacency_with_fewer_spots_isolated_and_duplicate_ones():
    assert adjacency(np.array([[3, 4]])).tolist() == [[0]]
    positions = np.array([[0, 0], [0, 2], [0, 2], [30, 30], [0, 4]])
    expected = [[0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert adjacency(positions).tolist() == expected


def test_hyperedges_take_the_most_different_neighbours():
    # five neighbours of spot 0, at growing feature distance; spot 6 is more different, but no neighbour
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    adjacent = torch.zeros(7, 7)
    adjacent[0, 1:6] = 1
    index, weight = hyperedges(features, adjacent)
    assert index[:, :4].tolist() == [[0, 0, 0, 0], [5, 4, 3, 2]]
    assert weight[:4].tolist() == pytest.approx([5 / 21 + 0.2, 4 / 21 + 0.2, 3 / 21 + 0.2, 2 / 21 + 0.2])
    assert index[1, 24:].tolist() == [0, 1, 2, 3]  # spot 6 has no neighbours: distance alone


# ---- decoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions",
    [[[5, 5]], [[0, 0], [63, 63], [20, 40], [0, 30], [63, 1], [30, 0]], [[1, 1]] * 5, [[1, 1], [1, 2]]],
)
def test_no_nan_from_few_isolated_or_duplicate_spots(fresh, positions):
    with torch.no_grad():
        out = fresh.eval().decode(torch.rand(len(positions), 3, 1024), torch.tensor(positions))
    assert out.expression.shape == (len(positions), 7)
    for tensor in (out.expression, out.latent, *out.counts):
        assert tensor.isfinite().all()


def test_dropout_is_off_at_inference_and_on_in_training(fresh):
    encoded, positions = torch.rand(5, 3, 1024), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]])
    with torch.no_grad():
        fresh.eval()
        first, second = (fresh.decode(encoded, positions).expression for _ in range(2))
        fresh.hgnn.train()  # the hypergraph alone
        third, fourth = (fresh.decode(encoded, positions).expression for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(third, fourth)


def test_centres_are_truncated():
    assert PublishedNetwork.centres(np.array([[10.9, 3.2], [-0.7, 5.0]])).tolist() == [[10, 3], [0, 5]]


def test_positions_are_array_coordinates():
    section = SimpleNamespace(array_xy=lambda: np.array([[3, 4]]))
    assert PublishedNetwork.positions(section).tolist() == [[3, 4]]


@pytest.mark.parametrize("bad", [-1, 64, 127])
def test_array_coordinates_beyond_the_embedding(bad):
    section = SimpleNamespace(array_xy=lambda: np.array([[5, bad], [6, 6]]))
    with pytest.raises(ValueError, match=rf"array_col.*array_row.*{bad}.*0 to 63"):
        PublishedNetwork.positions(section)


def test_backbone_is_the_networks_own(fresh):
    names = {"conv1.0.weight", "stage2.0.branch1.0.weight", "stage4.3.branch2.6.bias", "conv5.1.running_var"}
    assert names <= fresh.backbone.state_dict().keys()
    assert fresh.backbone["stage3"] is fresh.layer3
    assert not any(name.startswith("backbone") for name in fresh.state_dict())


def test_a_visium_array_is_refused(fresh, sections):
    """By fit and by prediction, before either looks at an image."""
    section = sections["S1"]
    section.obs["array_col"] += 70
    model = HGGEP(
        fresh, Config.from_preset("published"), section.var_names[:7], mpp=None, fingerprint=Fingerprint.empty()
    )
    with pytest.raises(ValueError, match=r"array_col.*larger arrays \(Visium: 128 x 78\)"):
        tl.predict(section, model, device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"array_col.*larger arrays \(Visium: 128 x 78\)"):
        tl.fit(section, genes=7, preset="published", **CPU)


# ---- training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    n, genes = 6, 7
    counts = torch.from_numpy(rng.poisson(1.0, (n, genes)).astype(np.float32))
    expression = torch.from_numpy(rng.normal(size=(n, genes)).astype(np.float32))
    expression[-1] = torch.nan
    return SimpleNamespace(
        patches=torch.from_numpy(rng.integers(0, 256, (n, 1, 3, 112, 112), dtype=np.uint8)),
        positions=torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1], [9, 9]]),
        expression=expression,
        counts=counts,
        size_factors=torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 0.0]),
        observed=torch.arange(n - 1),
    )


def train_once(network, batch, seed):
    torch.manual_seed(1)
    network.train()
    return network.loss(batch, torch.Generator().manual_seed(seed))


def test_loss_reaches_every_parameter(fresh, batch, monkeypatch):
    monkeypatch.setattr("hggep_sc.nn.published.VIEWS", 2)  # enough for weights among views
    fresh.zero_grad()
    terms = train_once(fresh, batch, 0)
    expected = terms["mse"] + 0.25 * terms["zinb"] + 0.5 * terms["distillation"]
    assert terms["loss"].item() == pytest.approx(expected.item())
    assert all(term > 0 for term in terms.values())
    terms["loss"].backward()
    unreached = {
        name
        for name, p in fresh.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or p.grad.eq(0).all()
    }
    # the softmax over views cancels what is the same in all scores
    assert unreached <= {"coef.2.bias"}
    fresh.zero_grad()


def test_loss_terms_by_the_published_recipe(fresh, batch, monkeypatch):
    """Five known predictions in place of the network's: what the loss makes of them."""
    rng = np.random.default_rng(1)
    latents = torch.from_numpy(rng.normal(size=(6, 6, 1024)).astype(np.float32))
    monkeypatch.setattr(fresh, "features", lambda pixels: pixels)
    monkeypatch.setattr(fresh, "latent", lambda encoded, positions: latents[: len(encoded)])
    with torch.no_grad():
        terms = fresh.loss(batch, torch.Generator().manual_seed(0))
        predictions = fresh.gene_head(latents).numpy()
        scores = fresh.coef(latents).numpy()[1:, :, 0]
    weights = np.exp(scores) / np.exp(scores).sum(0)
    consensus = (weights[:, :, None] * predictions[1:]).sum(0)
    assert terms["distillation"].item() == pytest.approx(np.square(consensus - predictions[0]).mean(), rel=1e-4)
    mse = np.square(predictions[0] - batch.expression.numpy())[:5].mean()
    assert terms["mse"].item() == pytest.approx(mse, rel=1e-5)


def one_after_the_other(network, batch, views):
    """The loss as the released code comes to it: each view goes through the network as a section of its own."""
    predictions, scores, latents = [], [], []
    for pixels in (network.pixels(batch.patches), *views):
        latents.append(network.latent(network.features(pixels[None])[0], batch.positions))
        predictions.append(network.gene_head(latents[-1]))
        scores.append(network.coef(latents[-1]))
    seen = batch.observed
    mean, dispersion, dropout = (parameter[seen] for parameter in network.count_parameters(latents[0]))
    mse = F.mse_loss(predictions[0][seen], batch.expression[seen])
    zinb = zinb_nll(batch.counts[seen], mean, dispersion, dropout, batch.size_factors[seen])
    consensus = (torch.stack(scores[1:]).softmax(0) * torch.stack(predictions[1:])).sum(0)
    return mse + 0.25 * zinb + 0.5 * F.mse_loss(consensus, predictions[0])


def test_views_in_one_batch_are_views_one_after_the_other(fresh, batch, monkeypatch):
    monkeypatch.setattr("hggep_sc.nn.published.VIEWS", 2)
    fresh.zero_grad()
    together = copy.deepcopy(fresh).train()
    for module in together.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    apart = copy.deepcopy(together)
    for name, module in list(apart.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            plain = torch.nn.BatchNorm2d(module.num_features)
            plain.load_state_dict(module.state_dict())
            apart.set_submodule(name, plain)
    views = augment(fresh.pixels(batch.patches), 2, torch.Generator().manual_seed(3))
    expected = one_after_the_other(apart, batch, views)
    expected.backward()
    found = together.loss(batch, torch.Generator().manual_seed(3))["loss"]
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = dict(together.named_parameters())
    for name, parameter in apart.named_parameters():
        error = (gradients[name].grad - parameter.grad).abs().max()
        assert error < 1e-3 * parameter.grad.abs().max() + 5e-6, name  # that of a bias before a norm is rounding alone
    for name, buffer in apart.named_buffers():
        torch.testing.assert_close(dict(together.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5, msg=name)


def test_hyperedges_stay_within_a_view(fresh, batch):
    features = torch.randn(3, 6, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = fresh.eval().mix(features, batch.positions)
        apart = torch.stack([fresh.mix(view, batch.positions) for view in features])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    weights = [hyperedges(view, torch.from_numpy(adjacency(batch.positions.numpy())))[1][:6] for view in features]
    assert not torch.allclose(weights[0], weights[1], rtol=1e-3)  # a view's own are read


def test_loss_is_reproducible(fresh, batch, monkeypatch):
    monkeypatch.setattr("hggep_sc.nn.published.VIEWS", 1)
    state = {name: value.clone() for name, value in fresh.state_dict().items()}
    losses = []
    for seed in (0, 0, 1):
        with torch.no_grad():
            fresh.load_state_dict(state)  # batch normalisation moves in training
            losses.append(train_once(fresh, batch, seed))
    same, again, other = losses
    assert same["loss"].item() == again["loss"].item()
    assert same["mse"].item() == other["mse"].item()
    assert same["distillation"].item() != other["distillation"].item()


def test_under_autocast_predictions_stay_single_precision(fresh):
    encoded, positions = torch.rand(4, 3, 1024), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    fresh.eval()
    with torch.no_grad(), bfloat16():
        out = fresh.decode(encoded, positions)
    for tensor in (out.expression, *out.counts):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
