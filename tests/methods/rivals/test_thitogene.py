"""THItoGene, held against vectors of its published network."""

import pytest
import torch

from hggep_sc.methods.rivals.thitogene import THItoGeneConfig, THItoGeneNetwork
from hggep_sc.nn.spot_graph import nearest
from parity import as_images, batch_of, centred, entries, filled, off, published_entries, stored, watched


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/thitogene.npz")


@pytest.fixture(scope="module")
def network(shared):
    return filled(shared, lambda: THItoGeneNetwork(THItoGeneConfig(), 50))


@pytest.fixture(scope="module")
def found(network, spots, vectors):
    capsules = network.caps_layer
    parts = {
        "odconv_att": network.odconv2d.attention,
        "odconv": network.odconv2d,
        "primary_caps": capsules.primary_caps,
        "digit_caps": capsules.digit_caps,
        "vit_block1": network.vit.transformer.layers[0],
        "vit": network.vit,
        "gat_head0": network.gat.attention_0,
        "gat": network.gat,
    }
    with watched(parts) as outputs:
        seen = network.encode(as_images(spots["patches"]))
        out = network.predict(network.attend(seen, spots["loc"]), vectors["adjacency"])
    outputs |= {f"odconv_att_{of}": value for of, value in zip(PARTS, outputs["odconv_att"], strict=True)}
    outputs["caps_conv4"] = capsules.maps(outputs["odconv"][:4].relu())
    outputs["gat_head0"] = torch.nn.functional.elu(outputs["gat_head0"])
    return {**outputs, "latent": out.latent, "pred": out.expression}


PARTS = ("channel", "filter", "spatial", "kernel")
ARRAYS = [*(f"odconv_att_{part}" for part in PARTS), "odconv", "caps_conv4", "primary_caps", "digit_caps"]


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "thitogene")


@pytest.mark.parametrize("name", [*ARRAYS, "vit_block1", "vit", "gat_head0", "gat", "pred"])
def test_parity(name, found, vectors):
    assert off(found[name], vectors[name]) < 1e-4


def test_parity_of_what_hardly_shows(network, spots, vectors):
    """Capsules are small beside these position embeddings: in double precision, and with embeddings as small."""
    images = as_images(spots["patches"])

    def predicted(images):
        tokens = network.attend(network.encode(images), spots["loc"])
        return network.predict(tokens, vectors["adjacency"].double()).expression

    network.double()
    tables = network.x_embed.weight, network.y_embed.weight
    try:
        assert off(centred(predicted(images)), centred(vectors["pred_float64"])) < 1e-4
        for table in tables:
            table.mul_(0.01)
        assert off(predicted(images), vectors["pred_small_position_float64"]) < 1e-4
        assert off(predicted(images.transpose(-1, -2)), vectors["pred_small_position_float64"]) > 1e-3
    finally:
        for table in tables:
            table.div_(0.01)
        network.float()


def test_attention_over_neighbours(network, spots, vectors, found):
    heads = [module for module in network.gat.modules() if hasattr(module, "axis")]
    assert len(heads) == 9
    for head in heads:
        head.axis = 1
    try:
        out = network.predict(found["vit"], vectors["adjacency"]).expression
    finally:
        for head in heads:
            head.axis = 0
    assert off(out, vectors["pred_neighbour_softmax"]) < 1e-4
    assert off(out, vectors["pred"]) > 0.1
    loss = (out - vectors["expression"]).square().mean().item()
    assert loss == pytest.approx(vectors["mse_loss_neighbour_softmax"].item(), rel=1e-4)


def test_loss(network, spots, vectors, monkeypatch):
    monkeypatch.setattr("hggep_sc.methods.rivals.thitogene.nearest", lambda *_: vectors["adjacency"])
    loss = network.loss(batch_of(spots, vectors["expression"]), torch.Generator())["loss"]
    assert loss.item() == pytest.approx(vectors["mse_loss"].item(), rel=1e-4)


def test_mistakes_show(network, spots, vectors, found):
    adjacency = vectors["adjacency"]
    exchanged = network.attend(found["digit_caps"], spots["loc"].flip(1))
    assert off(network.predict(exchanged, adjacency).expression, vectors["pred"]) > 0.01
    assert off(network.predict(found["vit"], adjacency.T).expression, vectors["pred"]) > 0.01


def test_the_graph_is_the_stored_one_but_for_ties(spots, vectors):
    graph, distance = nearest(spots["loc"], 4), torch.cdist(spots["loc"].double(), spots["loc"].double())
    for row, expected, far in zip(graph, vectors["adjacency"], distance, strict=True):
        assert far[row > 0].sort().values.tolist() == far[expected > 0].sort().values.tolist()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"config\.channels must be five"):
        THItoGeneConfig(channels=(4, 4))
    with pytest.raises(ValueError, match=r"multiple of config\.primary_width"):
        THItoGeneConfig(channels=(4, 4, 4, 4, 12))
    with pytest.raises(ValueError, match="too small for the convolutions: at least 44"):
        THItoGeneConfig(patch_size=43)
    with pytest.raises(ValueError, match=r"config\.normalise"):
        THItoGeneConfig(normalise="rows")
