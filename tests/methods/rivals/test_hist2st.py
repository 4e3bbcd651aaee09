"""Hist2ST, held against vectors of its published network."""

import pytest
import torch
from torch import nn

from hggep_sc.methods.rivals.hist2st import Hist2STConfig, Hist2STNetwork, published_nb
from hggep_sc.nn.losses import distillation
from hggep_sc.nn.spot_graph import nearest
from parity import as_images, batch_of, centred, entries, filled, formula, off, published_entries, stored, watched


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/hist2st.npz")


@pytest.fixture(scope="module")
def network(shared):
    return filled(shared, lambda: Hist2STNetwork(Hist2STConfig(), 50))


@pytest.fixture(scope="module")
def adjacency(vectors):
    """As stored: which of equally near spots is a neighbour depended on the sort."""
    return vectors["adjacency"].float()


@pytest.fixture(scope="module")
def found(network, spots, adjacency):
    body = network.body
    parts = {
        "patch_embedding": network.patch_embedding,
        "mixer1": body.layer1[0],
        "mixer2": body.layer1[1],
        "down": body.down,
        "vit1": body.layer2[0],
        "vit8": body.layer2[7],
        "gnn1": body.layer3[0],
        "gnn4": body.layer3[3],
        "lstm": body.jknet,
    }
    with watched(parts) as outputs:
        tokens = network.attend(network.encode(as_images(spots["patches"])), spots["loc"])
        latent = network.latent(tokens, adjacency)
    mean, dispersion, dropout = network.count_parameters(latent)
    return {
        **outputs,
        "lstm_step4": outputs["lstm"][0][3],
        "latent": latent,
        "coef": network.coef(latent),
        "pred": network.gene_head(latent),
        "zinb_mean": mean,
        "zinb_disp": dispersion,
        "zinb_pi": dropout,
    }


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "hist2st")


OF_PATCHES = ["patch_embedding", "mixer1", "mixer2", "down"]
OF_SPOTS = ["vit1", "vit8", "gnn1", "gnn4", "lstm_step4", "latent", "coef", "pred", "zinb_mean", "zinb_disp", "zinb_pi"]


@pytest.mark.parametrize("name", [*OF_PATCHES, *OF_SPOTS])
def test_parity(name, found, vectors):
    assert off(found[name], vectors[name]) < 1e-4


def test_the_graph_is_the_stored_one_but_for_ties(network, spots, vectors, adjacency):
    graph = network.graph(spots["loc"])
    distance = torch.cdist(spots["loc"].double(), spots["loc"].double())
    assert (graph != adjacency).sum() == 8
    for row, expected, far in zip(graph, adjacency, distance, strict=True):
        assert far[row > 0].sort().values.tolist() == far[expected > 0].sort().values.tolist()
    assert torch.equal(vectors["adjacency_na"], vectors["adjacency"])  # no neighbour of these is out of reach
    assert torch.equal(nearest(spots["loc"], 4), graph)


def test_parity_of_what_differs_between_spots(network, found, vectors, spots, adjacency):
    """The mean of a gene drowns it: in double precision, and with mistakes that show in nothing else."""
    expected, tokens = centred(vectors["pred_float64"]), found["vit8"]

    def wrong(tokens, adjacency):
        return off(centred(network.gene_head(network.latent(tokens, adjacency))), expected)

    exchanged = network.attend(found["down"], spots["loc"].flip(1))
    assert wrong(tokens, adjacency) < 2e-3  # in single precision
    assert wrong(tokens, adjacency.T) > 0.5
    assert wrong(tokens, adjacency + torch.eye(32)) > 0.3
    assert wrong(exchanged, adjacency) > 0.5
    network.double()
    try:
        tokens = network.attend(network.encode(as_images(spots["patches"])), spots["loc"])
        assert wrong(tokens, adjacency.double()) < 1e-4
    finally:
        network.float()


def test_gelu_before_batch_normalisation_shows(network, found, vectors):
    first = network.body.layer1[0]
    one, norm, gelu, *rest = first.dw
    first.dw = nn.Sequential(one, gelu, norm, *rest)
    try:
        assert off(first(found["patch_embedding"]), vectors["mixer1"]) > 1e-3
    finally:
        first.dw = nn.Sequential(one, norm, gelu, *rest)


def test_pooling_by_the_maximum(network, found, vectors, adjacency):
    for layer in network.body.layer3:
        layer.pooling = "max"
    try:
        assert off(network.gene_head(network.latent(found["vit8"], adjacency)), vectors["pred_policy_max"]) < 1e-4
    finally:
        for layer in network.body.layer3:
            layer.pooling = "mean"


def test_losses_and_distillation(network, spots, vectors, adjacency, monkeypatch):
    """On the five fixed views of the vectors, in place of drawn ones."""
    batch = batch_of(spots, vectors["target"], vectors["size_factors"])
    pixels = network.pixels(batch.patches)
    turned = torch.rot90(pixels, 1, (-2, -1)), torch.rot90(pixels, -1, (-2, -1))
    grey = torch.einsum("nchw,c->nhw", pixels, torch.tensor([0.2989, 0.587, 0.114]))[:, None].expand_as(pixels)
    views = torch.stack([pixels, pixels, pixels.flip(-1), *turned, grey])
    monkeypatch.setattr(network, "graph", lambda positions: adjacency)
    monkeypatch.setattr("hggep_sc.methods.rivals.hist2st.augment", lambda *_: views[1:])
    seen = {}

    def kept(prediction, predictions, scores):
        seen.update(view_pred=predictions, view_coef=scores, distilled=(scores.softmax(0) * predictions).sum(0))
        return distillation(prediction, predictions, scores)

    monkeypatch.setattr("hggep_sc.methods.rivals.hist2st.distillation", kept)
    terms = network.loss(batch, torch.Generator())
    for name, value in seen.items():
        assert off(value, vectors[name]) < 1e-4, name
    stored_as = {"mse": "mse_loss", "zinb": "zinb_loss", "loss": "total_loss"}
    for name, place in stored_as.items():
        assert terms[name].item() == pytest.approx(vectors[place].item(), rel=1e-4), name
    assert terms["distillation"].item() == pytest.approx(vectors["bake_loss"].item(), rel=1e-2)  # of seven digits lost


def test_negative_binomial(shared, found, spots, vectors):
    fill = formula(shared)
    r, p = (
        found["latent"] @ fill.values(f"{name}.weight", (50, 1024)).T + fill.values(f"{name}.bias", (50,))
        for name in ("hr", "hp")
    )
    assert off(r, vectors["nb_r"]) < 1e-4
    assert off(p, vectors["nb_p"]) < 1e-4
    assert published_nb(spots["counts"].float(), r, p).item() == pytest.approx(vectors["nb_loss"].item(), rel=1e-4)
    assert published_nb(torch.ones(2, 3), torch.zeros(2, 3), torch.full((2, 3), 100.0)).isfinite()
    with torch.device("meta"):
        names = Hist2STNetwork(Hist2STConfig(count_loss="nb"), 50).state_dict().keys()
    assert {"hr.weight", "hr.bias", "hp.weight", "hp.bias"} <= names
    assert not any(name.startswith(("mean", "disp", "pi")) for name in names)
