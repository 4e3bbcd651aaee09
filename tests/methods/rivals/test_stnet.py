"""ST-Net, held against vectors of its published network."""

import numpy as np
import pytest
import torch

from hggep_sc import methods
from hggep_sc.errors import ModelError
from hggep_sc.features.describe import DIHEDRAL, turned
from hggep_sc.methods.rivals.stnet import STNet, STNetConfig, STNetNetwork
from hggep_sc.training.devices import Devices
from hggep_sc.training.run import Run
from parity import batch_of, centred, crops, entries, filled, off, published_entries, stored, watched

SMALL = {"patch_size": 32, "fields_px": (32.0,), "depths": (1, 2), "growth": 4, "stem": 8, "batch_spots": 16}


@pytest.fixture(scope="module")
def vectors(shared):
    return stored(shared, "rivals/stnet.npz")


@pytest.fixture(scope="module")
def patches(shared, spots):
    return crops(shared, spots["pixel"], 112)


@pytest.fixture(scope="module")
def network(shared, vectors):
    config = STNetConfig(pixel_mean=tuple(vectors["mean"].tolist()), pixel_std=tuple(vectors["std"].tolist()))
    return filled(shared, lambda: STNetNetwork(config, 50))


@pytest.fixture(scope="module")
def found(network, patches):
    parts = {name: network.features.get_submodule(name) for name in ("pool0", "norm5")}
    parts |= {f"transition{i}": network.features.get_submodule(f"transition{i}") for i in (1, 2, 3)}
    with watched(parts) as outputs:
        pooled = network.encode(patches[:4])
    # views 4 i + 2 j + k: turned if k, flipped top to bottom if j, left to right if i
    views = []
    for number in range(8):
        view = torch.rot90(patches, number % 2, (-2, -1))
        view = view.flip(-2) if number // 2 % 2 else view
        views.append(view.flip(-1) if number // 4 else view)
    predicted = torch.stack([network.decode(network.encode(view), None).expression for view in views], dim=1)
    return {**outputs, "pooled": pooled, "pred_views": predicted, "pred_identity": predicted[:, 0]}


def test_entries(shared, network):
    assert entries(network) == published_entries(shared, "stnet")


@pytest.mark.parametrize("name", ["transition1", "transition2", "transition3", "norm5", "pred_views", "pred_identity"])
def test_parity(name, found, vectors):
    assert off(found[name], vectors[name]) < 1e-4


def test_parity_of_what_is_stored_in_part(found, vectors):
    assert off(found["pool0"][:, :16], vectors["pool0"]) < 1e-4
    assert off(found["pooled"], vectors["pooled"][:4]) < 1e-4


def test_parity_of_the_mean_over_views(network, patches, found, vectors):
    """As prediction takes it: over all turns and mirrorings, in its own order."""
    features = torch.stack([network.encode(view) for view in turned(patches[:4], DIHEDRAL)], dim=1)
    mean = torch.stack([network.decode(view, None).expression for view in features.unbind(1)]).mean(0)
    assert off(mean, vectors["pred"][:4]) < 1e-4
    off_centre = centred(found["pred_views"].mean(1)) - centred(vectors["pred_float64"])
    assert (
        off_centre.abs().max() / centred(vectors["pred_float64"]).abs().max() < 1e-3
    )  # float32, of values 300 times as large
    missing = centred(found["pred_views"][:, :4].mean(1)) - centred(vectors["pred_float64"])
    assert missing.abs().max() > 10 * off_centre.abs().max()  # four views instead of eight show


def test_loss(network, patches, spots, vectors):
    batch = batch_of(spots, vectors["target"])
    batch.patches = patches
    assert network.loss(batch, torch.Generator())["loss"].item() == pytest.approx(
        vectors["loss_identity"].item(), rel=1e-4
    )


def test_a_transposed_patch_shows(network, patches, vectors, found):
    wrong = network.decode(network.encode(patches.transpose(-1, -2)), None).expression
    assert off(centred(wrong), centred(vectors["pred_identity"])) > 0.05


def test_starts_at_the_mean_and_pixels_are_measured(opened):
    config = STNetConfig(**SMALL)
    data = STNet._read(
        opened[:2], [*opened[0].var_names[:6]], config, None, 1.0, None, Run(0, Devices(torch.device("cpu")))
    )
    noted = STNet.noting(config, data, seed=0)
    pixels = np.concatenate([part.seen[part.observed] for part in data]) / 255  # fewer than 384 patches: all
    np.testing.assert_allclose(noted.pixel_mean, pixels.mean((0, 1, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(noted.pixel_std, pixels.std((0, 1, 3, 4)), rtol=1e-5)
    started = STNet._started(data, noted, 6, None, 0).eval()
    expression = np.concatenate([part.expression[part.observed] for part in data])
    prediction = started.decode(started.encode(torch.from_numpy(data[0].seen[:3])), None).expression
    np.testing.assert_allclose(prediction.detach(), np.tile(expression.mean(0), (3, 1)), rtol=1e-5)


@pytest.mark.parametrize("normalize", ["library", "panel"])
def test_log_shares_are_learnt_and_expression_is_predicted(opened, normalize):
    """A network that stays at its start predicts the geometric mean of the authors' shares, on everyone's scale."""
    section, genes = opened[0], [*opened[0].var_names[:6]]
    config = STNetConfig(**SMALL, epochs=1, learning_rate=1e-12, inner_folds=None, normalize=normalize)
    how = {"genes": genes, "weights": None, "device": "cpu", "progress": False}
    counts = section.counts(section.var_names).toarray().astype(float)
    n, total = (counts.shape[1], counts.sum(1)) if normalize == "library" else (6, counts[:, :6].sum(1))
    seen = total > 0
    learnt = np.log((1 + counts[seen, :6]) / (n + total[seen, None])).mean(0)
    predicted, _ = STNet.fit([section], config.replace(smoothed=True), **how).predict(section, device="cpu")
    np.testing.assert_allclose(predicted, np.tile(np.log1p(1e4 * np.exp(learnt)), (len(counts), 1)), rtol=1e-5)
    plain, _ = STNet.fit([section], config, **how).predict(section, device="cpu")
    expression = np.log1p(1e4 * counts[seen, :6] / total[seen, None]).mean(0)
    np.testing.assert_allclose(plain, np.tile(expression, (len(counts), 1)), rtol=1e-5)


def test_all_epochs_are_taken_where_nothing_can_be_held_out(opened):
    """All spots of the only section lie in one block, as they are the same."""
    config = STNetConfig(**SMALL, epochs=3)
    section = opened[0].subset(np.array([3, 3]))
    model = STNet.fit([section], config, genes=[*section.var_names[:6]], weights=None, device="cpu", progress=False)
    assert len(model.history) == 3


def test_inner_folds_choose_the_epoch(opened):
    how = {"genes": 6, "weights": None, "device": "cpu", "progress": False}
    config = STNetConfig(**SMALL, epochs=4, learning_rate=1e-3, inner_folds=2)
    model = STNet.fit(opened[:2], config, **how)
    assert 1 <= len(model.history) <= 4
    assert len(STNet.fit(opened[:2], config.replace(inner_folds=None), **how).history) == 4


def test_published_checkpoint(shared, network, tmp_path):
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": state, "optim": {}}, tmp_path / "st.pt")
    genes = [f"G{i}" for i in range(50)]
    model = methods.get("stnet").from_published(tmp_path / "st.pt", genes=genes)
    assert model.config.depths == (6, 12, 24, 16)
    assert model.config.smoothed  # which all published ones have learnt
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in model.network.state_dict().items())
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"published code of STNet: entry 'classifier\.bias' is missing"):
        STNet.from_published(tmp_path / "other.pt", genes=genes)
    with pytest.raises(ValueError, match="predicts 50 genes, but genes= has 2"):
        STNet.from_published(tmp_path / "st.pt", genes=["A", "B"])


def test_weights_of_torchvision_with_its_older_names(tmp_path, opened):
    config = STNetConfig(**SMALL, epochs=1, inner_folds=None, learning_rate=1e-12)
    network = STNetNetwork(config, 6)
    old = {
        f"features.{name}".replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): value
        for name, value in network.features.state_dict().items()
    }
    torch.save({**old, "classifier.weight": torch.ones(3)}, tmp_path / "densenet.pth")
    how = {"genes": 6, "device": "cpu", "progress": False}
    model = STNet.fit(opened[:1], config, weights=tmp_path / "densenet.pth", **how)
    weight = "denseblock2.denselayer1.conv2.weight"
    torch.testing.assert_close(model.network.features.state_dict()[weight], network.features.state_dict()[weight])
    del old["features.conv0.weight"]
    torch.save(old, tmp_path / "half.pth")
    with pytest.raises(ModelError, match=r"not a file of densenet121's weights: conv0\.weight is missing"):
        STNet.fit(opened[:1], config, weights=tmp_path / "half.pth", **how)
