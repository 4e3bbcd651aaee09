"""HisToGene, held against vectors of its published network."""

import pytest
import torch

from hggep_sc.methods.rivals.histogene import HisToGene, HisToGeneConfig, HisToGeneNetwork
from hggep_sc.section import open_sections
from hggep_sc.section.fingerprint import Fingerprint
from parity import adata_of, as_images, batch_of, centred, entries, filled, off, published_entries, stored, watched


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/histogene.npz")


@pytest.fixture(scope="module")
def network(shared):
    return filled(shared, lambda: HisToGeneNetwork(HisToGeneConfig(), 50))


@pytest.fixture(scope="module")
def found(network, spots):
    layers = network.vit.transformer.layers
    parts = {
        "patch_embedding": network.patch_embedding,
        "embedded": network.dropout,
        "attn1_branch": layers[0][0].fn,
        "block1": layers[0],
        "block4": layers[3],
        "block8": layers[7],
    }
    with watched(parts) as outputs:
        out = network.decode(network.encode(as_images(spots["patches"])), spots["loc"])
    return {**outputs, "latent": out.latent, "pred": out.expression}


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "histogene")


@pytest.mark.parametrize("name", ["patch_embedding", "embedded", "attn1_branch", "block1", "block4", "block8", "pred"])
def test_parity(name, found, vectors):
    assert off(found[name], vectors[name]) < 1e-4


def test_parity_of_what_hardly_shows(found, vectors, network):
    places = vectors["embedded"] - vectors["patch_embedding"]
    assert off(found["embedded"] - found["patch_embedding"], places) < 1e-4
    assert off(centred(found["pred"]), centred(vectors["pred_float64"])) < 1e-4
    assert off(network.gene_head(found["block4"]), vectors["pred_4layers"]) < 1e-4
    assert torch.equal(found["latent"], found["block8"])


def test_a_section_is_cut_as_published(network, spots, vectors):
    genes = [f"G{i}" for i in range(50)]
    model = HisToGene(network, HisToGeneConfig(), genes, mpp=None, fingerprint=Fingerprint.empty())
    (section,) = open_sections({"C2": adata_of(spots)})
    assert off(torch.from_numpy(model.predict(section, device="cpu")[0]), vectors["pred"]) < 1e-4


def test_loss(network, spots, vectors):
    loss = network.loss(batch_of(spots, vectors["target"]), torch.Generator())["loss"]
    assert loss.item() == pytest.approx(vectors["mse_loss"].item(), rel=1e-4)


@pytest.mark.parametrize("mistake", ["tables exchanged", "patches not transposed"])
def test_a_mistake_shows(mistake, network, spots, vectors, found):
    images = as_images(spots["patches"])
    if mistake == "tables exchanged":
        pred = network.decode(found["patch_embedding"], spots["loc"].flip(1)).expression
    else:
        pred = network.decode(network.encode(images.transpose(-1, -2)), spots["loc"]).expression
    assert off(pred, vectors["pred"]) > 0.01
