"""What all rivals share, shown by two that are as small as can be: one sees sections, one sees spots."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hggep_sc import methods
from hggep_sc.errors import CheckpointError
from hggep_sc.features.describe import DIHEDRAL
from hggep_sc.methods.rivals import Rival, RivalConfig
from hggep_sc.nn import Output
from hggep_sc.section import open_sections
from hggep_sc.training.devices import Devices
from hggep_sc.training.loop import SpotOrder, Spots
from hggep_sc.training.run import Run

RUN = Run(0, Devices(torch.device("cpu")))
HOW = {"genes": 8, "device": "cpu", "progress": False}


class Colours(nn.Module):
    """A linear layer on the mean colour of a patch; `together` takes off the section's mean."""

    def __init__(self, n_genes, n_features=None, together=True):
        super().__init__()
        self.n_features, self.together = n_features or 3, together
        self.head = nn.Linear(self.n_features, n_genes)

    def encode(self, patches):
        return patches[:, 0].float().mean((-1, -2)) / 255

    def decode(self, features, positions):
        seen = features - features.mean(0) if self.together else features
        return Output(self.head(seen), seen, None)

    def loss(self, batch, generator):
        seen = self.encode(batch.patches) if batch.features is None else batch.features.flatten(1)
        off = self.decode(seen, batch.positions).expression - batch.expression
        return {"loss": off[batch.observed].square().mean()}


@dataclass(frozen=True)
class Settings(RivalConfig):
    patch_size: int = 16
    fields_px: tuple[float, ...] = (24.0,)
    epochs: int = 3
    learning_rate: float = 0.1
    batch_spots: int = 16


class OfSections(Rival):
    method = "of_sections"
    configured_by = Settings

    @classmethod
    def untrained(cls, config, n_genes, n_features):
        return Colours(n_genes, n_features, cls.sees_sections)

    @classmethod
    def optimiser(cls, config, parameters):
        return torch.optim.Adam(parameters, config.learning_rate)

    @classmethod
    def read_published(cls, path, n_genes):
        raise NotImplementedError


class OfSpots(OfSections):
    method = "of_spots"
    takes = OfSections.takes | {"encoder", "weights"}
    sees_sections = False
    views = DIHEDRAL

    @classmethod
    def batches(cls, data, config, run):
        spots = Spots(data)
        return DataLoader(spots, batch_size=None, sampler=SpotOrder(len(spots), config.batch_spots, run.seed))


rivals = pytest.mark.parametrize("rival", [OfSections, OfSpots])


@pytest.fixture
def opened(sections):
    for adata in sections.values():
        adata.obsm["X_emb"] = np.random.default_rng(0).normal(size=(adata.n_obs, 5)).astype(np.float32)
    return open_sections(sections)


@rivals
def test_learns_predicts_and_is_stored(rival, opened, tmp_path):
    model = rival.fit(opened[:2], Settings(epochs=30), **HOW)
    assert len(model.history) == 30
    assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
    expression, latent = model.predict(opened[2], device="cpu")
    assert expression.shape == (40, 8)
    assert latent.shape == (40, 3)
    model.save(tmp_path / "m")
    again = rival.load(tmp_path / "m")
    assert (again.id, again.genes, again.config, again.seed) == (model.id, model.genes, model.config, 0)
    np.testing.assert_array_equal(again.predict(opened[2], device="cpu")[0], expression)


@rivals
def test_a_resumed_fit_ends_as_an_uninterrupted_one(rival, opened, tmp_path, monkeypatch):
    whole = rival.fit(opened[:2], Settings(), **HOW)
    loss, seen = Colours.loss, []

    def interrupted(self, batch, generator):
        seen.append(batch)
        if len(seen) == (4 if rival is OfSections else 12):  # in the second epoch or later
            raise KeyboardInterrupt
        return loss(self, batch, generator)

    monkeypatch.setattr(Colours, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rival.fit(opened[:2], Settings(), checkpoint_dir=tmp_path / "fit", **HOW)
    with pytest.raises(CheckpointError, match="resume=True"):
        rival.fit(opened[:2], Settings(), checkpoint_dir=tmp_path / "fit", **HOW)
    resumed = rival.fit(opened[:2], Settings(), checkpoint_dir=tmp_path / "fit", resume=True, **HOW)
    assert resumed.id == whole.id
    assert resumed.history["epoch"].tolist() == [0, 1, 2]


def test_spots_do_not_see_each_other(opened):
    model = OfSpots.fit(opened[:2], Settings(), **HOW)
    alone = model.predict(opened[2].subset(np.array([7])), device="cpu")[0]
    np.testing.assert_allclose(alone, model.predict(opened[2], device="cpu", batch_size=9)[0][[7]], rtol=1e-5)


def test_a_section_in_chunks_is_whole_in_as_large_ones(opened):
    model = OfSections.fit(opened[:2], Settings(), **HOW)
    expression = model.predict(opened[2], device="cpu")[0]
    np.testing.assert_array_equal(model.predict(opened[2], device="cpu", chunk_spots=40)[0], expression)
    assert not np.allclose(model.predict(opened[2], device="cpu", chunk_spots=10)[0], expression)


def test_sees_through_another_encoder(opened, tmp_path):
    model = OfSpots.fit(opened[:2], Settings(), encoder="X_emb", weights=None, **HOW)
    assert (model.embeddings, model.reads_image) == ("X_emb", False)
    embeddings = opened[2].embeddings("X_emb")
    head = model.network.head
    expected = embeddings @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(model.predict(opened[2], device="cpu")[0], expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "m")
    assert OfSpots.load(tmp_path / "m").id == model.id


def test_batches_of_spots_are_of_all_sections_in_an_order_of_the_seed(opened):
    data = OfSpots._read(opened[:2], [*opened[0].var_names[:8]], Settings(), None, 1.0, None, RUN)
    spots = Spots(data)
    order = SpotOrder(len(spots), 16, seed=3)
    drawn = list(order)
    assert sorted(number for batch in drawn for number in batch) == list(range(len(spots)))
    assert drawn == list(SpotOrder(len(spots), 16, seed=3))
    order.set_epoch(1)
    assert list(order) != drawn
    assert sum(map(len, SpotOrder(len(spots), 16, 3, whole=True))) == len(spots) // 16 * 16
    batch = spots[drawn[0]]
    for place, number in enumerate(drawn[0]):
        section, spot = spots.of[number]
        np.testing.assert_array_equal(batch.expression[place], data[section].expression[spot])
        np.testing.assert_array_equal(batch.patches[place], data[section].seen[spot])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one field of view"):
        Settings(fields_px=(24.0, 48.0))
    with pytest.raises(ValueError, match=r"config\.learning_rate"):
        Settings(learning_rate=0)
    with pytest.raises(ValueError, match=r"config\.epochs"):
        Settings(epochs=0)
    with pytest.raises(TypeError, match=r"config\.harmony='no' must be True or False"):
        methods.get("bleep").configured_by(harmony="no")
    with pytest.raises(ValueError, match=r"config\.temperature=0"):
        methods.get("bleep").configured_by(temperature=0)
    with pytest.raises(ValueError, match=r"config\.inner_folds=1 must be at least 2"):
        methods.get("stnet").configured_by(inner_folds=1)
