"""BLEEP, held against vectors of its published network, and its retrieval against a plain loop."""

import sys

import numpy as np
import pytest
import torch

from hggep_sc.errors import MissingPackageError, ModelError
from hggep_sc.methods.rivals.bleep import BLEEP, BLEEPConfig, BLEEPNetwork
from parity import crops, entries, filled, off, published_entries, stored, watched

SMALL = {"patch_size": 32, "fields_px": (32.0,), "depths": (1, 1), "stem": 4, "width": 8, "epochs": 3}
HOW = {"genes": 6, "weights": None, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/bleep.npz")


@pytest.fixture(scope="module")
def network(shared):
    return filled(shared, lambda: BLEEPNetwork(BLEEPConfig(), 50))


@pytest.fixture(scope="module")
def patches(shared, spots):
    return crops(shared, spots["pixel"], 112)


@pytest.fixture(scope="module")
def found(network, patches):
    model = network.image_encoder.model
    parts = {"stem": model.maxpool, **{f"layer{i}_mean": model.get_submodule(f"layer{i}") for i in (1, 2, 3)}}
    with watched(parts) as outputs:
        network.encode(patches[:8])
    means = {name: value if name == "stem" else value.mean((2, 3)) for name, value in outputs.items()}
    features = network.encode(patches)
    return {**means, "image_features": features, "image_embeddings": network.image_projection(features)}


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "bleep")


@pytest.mark.parametrize("name", ["layer1_mean", "layer2_mean", "layer3_mean", "image_features", "image_embeddings"])
def test_parity(name, found, vectors):
    assert off(found[name], vectors[f"{name}_normalised"]) < 1e-4


def test_parity_of_stem_and_losses(found, vectors, network):
    assert off(found["stem"][0, :8], vectors["stem_normalised"]) < 1e-4
    embedded = network.spot_projection(vectors["expression"])
    assert off(embedded, vectors["spot_embeddings"]) < 1e-4
    spots, images = network.losses(found["image_embeddings"], embedded)
    assert spots.mean().item() == pytest.approx(vectors["spots_loss_normalised"].mean().item(), rel=1e-4)
    assert images.mean().item() == pytest.approx(vectors["images_loss_normalised"].mean().item(), rel=1e-4)
    both = (spots + images).mean().item() / 2
    assert both == pytest.approx(vectors["contrastive_loss_normalised"].item(), rel=1e-4)


def test_red_first_shows(network, patches, vectors):
    wrong = network.encode(patches[:4].flip(2))
    assert off(wrong, vectors["image_features_normalised"][:4]) > 0.01


@pytest.mark.parametrize("block", [65536, 10])
@pytest.mark.parametrize("mode", ["simple", "average", "weighted_average"])
def test_retrieval(mode, block, shared, vectors):
    network = filled(shared, lambda: BLEEPNetwork(BLEEPConfig(mode=mode, reference_block=block), 50))
    network.refer_to(vectors["reference_expression"])
    assert off(network.reference_embeddings, vectors["reference_embeddings"]) < 1e-4
    queries = vectors["image_embeddings_normalised"][vectors["query"].long()]
    assert off(network.retrieved(queries), vectors[f"pred_{mode}"]) < 1e-4
    assert off(network.retrieved(queries[:1]), vectors[f"pred_{mode}"][:1]) < 1e-4  # one query alone


def test_few_references_are_all_taken_and_none_is_refused():
    network = BLEEPNetwork(BLEEPConfig(**SMALL), 6).eval()
    with pytest.raises(ModelError, match="no reference spots"):
        network.retrieved(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="needs reference spots"):
        network.refer_to(torch.empty(0, 6))
    expression = torch.rand(5, 6)
    network.refer_to(expression)
    torch.testing.assert_close(network.retrieved(torch.rand(2, 8)), expression.mean(0).expand(2, 6))


def test_far_matches_do_not_overflow():
    network = BLEEPNetwork(BLEEPConfig(**SMALL, mode="weighted_average"), 6).eval()
    network.refer_to(torch.rand(9, 6))
    network.reference_embeddings = network.reference_embeddings * 100
    assert network.retrieved(torch.rand(3, 8)).isfinite().all()


def test_training_spots_are_the_reference_and_are_stored(opened, tmp_path):
    model = BLEEP.fit(opened[:2], BLEEPConfig(**SMALL, harmony=False), **HOW)
    assert len(model.network.reference_expression) == sum((section.library() > 0).sum() for section in opened[:2])
    model.save(tmp_path / "m")
    again = BLEEP.load(tmp_path / "m")
    assert again.id == model.id
    expression = model.predict(opened[2], device="cpu")[0]
    np.testing.assert_array_equal(again.predict(opened[2], device="cpu")[0], expression)
    assert expression.min() >= model.network.reference_expression.min().item()  # a mean of reference spots


def test_harmony_brings_sections_together(opened, monkeypatch):
    """Of which one is made to have thrice as much of everything, the section's own total aside."""
    pytest.importorskip("harmonypy")
    model = BLEEP.fit(opened[:2], BLEEPConfig(**SMALL), **HOW)
    plain = BLEEP.fit(opened[:2], BLEEPConfig(**SMALL, harmony=False), **HOW)
    one = int((opened[0].library() > 0).sum())

    def apart(fitted):
        expression = fitted.network.reference_expression
        return (expression[:one].mean(0) - expression[one:].mean(0)).norm()

    assert apart(model) < apart(plain)
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    with pytest.raises(MissingPackageError, match=r'"hggep-sc\[bleep\]".*"harmony": False'):
        BLEEP.fit(opened[:2], BLEEPConfig(**SMALL), **HOW)
    BLEEP.fit(opened[:1], BLEEPConfig(**SMALL), **HOW)  # one section needs none


def test_published_checkpoint(network, sections, opened, tmp_path):
    state = {f"module.{name}".replace("spot_proj", "well_proj"): value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "bleep.pt")
    genes = [*opened[0].var_names[:50]]
    without = BLEEP.from_published(tmp_path / "bleep.pt", genes=genes)
    with pytest.raises(ModelError, match="reference="):
        without.predict(opened[2].subset(np.arange(2)), device="cpu")
    model = BLEEP.from_published(tmp_path / "bleep.pt", genes=genes, reference=sections["S1"])
    assert model.config.depths == (3, 4, 6, 3)
    assert len(model.network.reference_expression) == 40
    assert model.predict(opened[2].subset(np.arange(2)), device="cpu")[0].shape == (2, 50)
    torch.save({"image_projection.fc.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"entry 'spot_projection\.projection\.weight' is missing"):
        BLEEP.from_published(tmp_path / "other.pt", genes=genes)
