"""DeepPT, held against vectors of its network."""

import numpy as np
import pytest
import torch
from PIL import Image

from hggep_sc.errors import ModelError
from hggep_sc.methods.rivals.deeppt import DeepPT, DeepPTConfig, DeepPTNetwork
from parity import batch_of, crops, entries, filled, off, published_entries, stored, watched

SMALL = {
    **{"patch_size": 32, "fields_um": None, "fields_px": (32.0,), "depths": (1, 1), "stem": 4, "hidden": 8},
    **{"epochs": 3, "autoencoder_epochs": 2},
}
HOW = {"genes": 6, "weights": None, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/deeppt.npz")


@pytest.fixture(scope="module")
def network(shared):
    return filled(shared, lambda: DeepPTNetwork(DeepPTConfig(), 50))


@pytest.fixture(scope="module")
def found(network, shared, spots):
    patches = crops(shared, spots["pixel"], 112)
    stages = {f"layer{i}_mean": network.resnet.get_submodule(f"layer{i}") for i in (1, 2, 3)}
    with watched({"stem": network.resnet.maxpool, **stages}) as outputs:
        network.encode(patches[:8])
    means = {name: value if name == "stem" else value.mean((2, 3)) for name, value in outputs.items()}
    features = network.encode(patches)
    compressed = network.encoder(features)
    return {
        **means,
        "features": features,
        "compressed": compressed,
        "reconstruction": network.decoder(compressed),
        "hidden": network.layer0(compressed),
        "pred_tiles": network.decode(features, None).expression,
    }


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "deeppt")


@pytest.mark.parametrize(
    "name",
    ["layer1_mean", "layer2_mean", "layer3_mean", "features", "compressed", "reconstruction", "hidden", "pred_tiles"],
)
def test_parity(name, found, vectors):
    assert off(found[name], vectors[name]) < 1e-4


def test_parity_of_stem_slide_and_losses(found, vectors, network, spots):
    assert off(found["stem"][0, :8], vectors["stem"]) < 1e-4
    assert off(found["pred_tiles"].mean(0), vectors["pred_slide"]) < 1e-4
    batch = batch_of(spots, vectors["expression"])
    batch.features, batch.patches = found["features"][:, None, None], None
    assert network.loss(batch, torch.Generator())["loss"].item() == pytest.approx(vectors["spot_loss"].item(), rel=1e-4)
    network.reconstructs = True
    loss = network.loss(batch, torch.Generator())["loss"].item()
    network.reconstructs = False
    assert loss == pytest.approx(vectors["ae_loss"].item(), rel=1e-4)


def test_a_tile_of_512_px(network, shared, spots, vectors):
    (tile,) = crops(shared, spots["pixel"][:1], 256)[0]
    resized = np.asarray(Image.fromarray(tile.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized, vectors["tile512_resized"])
    features = network.encode(torch.from_numpy(resized).permute(2, 0, 1)[None, None])
    assert off(features, vectors["tile512_features"]) < 1e-4
    assert off(network.decode(features, None).expression, vectors["tile512_pred"]) < 1e-4


def test_the_backbone_stays_and_both_parts_learn(opened):
    torch.manual_seed(0)
    model = DeepPT.fit(opened[:2], DeepPTConfig(**SMALL), **HOW)
    again = DeepPT.fit(opened[:2], DeepPTConfig(**SMALL), **HOW)
    longer = DeepPT.fit(opened[:2], DeepPTConfig(**{**SMALL, "epochs": 5}), **HOW)
    assert model.id == again.id
    states = [fitted.network.state_dict() for fitted in (model, longer)]
    changed = {name.partition(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {"layer0", "layer1"}  # what two more epochs of the head are of
    assert len(longer.history) == 5


def test_training_ends_where_held_out_spots_are_predicted_no_better(opened):
    still = {**SMALL, "epochs": 40, "patience": 2, "learning_rate": 1e-12}
    assert len(DeepPT.fit(opened[:2], DeepPTConfig(**still), **HOW).history) < 40


def test_resumed_in_the_second_training(opened, tmp_path, monkeypatch):
    whole = DeepPT.fit(opened[:2], DeepPTConfig(**SMALL), **HOW)
    loss, seen = DeepPTNetwork.loss, []

    def interrupted(self, batch, generator):
        seen.append(self.reconstructs)
        if seen.count(False) == 4:
            raise KeyboardInterrupt
        return loss(self, batch, generator)

    def watched(self, batch, generator):
        seen.append(self.reconstructs)
        return loss(self, batch, generator)

    monkeypatch.setattr(DeepPTNetwork, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DeepPT.fit(opened[:2], DeepPTConfig(**SMALL), checkpoint_dir=tmp_path / "fit", **HOW)
    monkeypatch.setattr(DeepPTNetwork, "loss", watched)
    seen.clear()
    resumed = DeepPT.fit(opened[:2], DeepPTConfig(**SMALL), checkpoint_dir=tmp_path / "fit", resume=True, **HOW)
    assert resumed.id == whole.id
    assert True not in seen  # the autoencoder is not trained again


def test_published_files(network, tmp_path):
    state = network.state_dict()
    parts = {
        "BRCA_model_AE.pth": ("encoder.", "decoder."),
        "model_trained.pth": ("layer0.", "layer1."),
        "ResNet50_IMAGENET1K_V2.pt": ("resnet.",),
    }
    (tmp_path / "files").mkdir()
    for file, starts in parts.items():
        of_file = {name.removeprefix("resnet."): value for name, value in state.items() if name.startswith(starts)}
        torch.save(of_file, tmp_path / "files" / file)
    genes = [f"G{i}" for i in range(50)]
    model = DeepPT.from_published(tmp_path / "files", genes=genes)
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    (tmp_path / "files" / "BRCA_model_AE.pth").unlink()
    with pytest.raises(ModelError, match=r"entry 'encoder\.0\.weight' is missing"):
        DeepPT.from_published(tmp_path / "files", genes=genes)
