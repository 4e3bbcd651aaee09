from copy import copy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import KDTree

from hggep_sc import Config, settings
from hggep_sc.nn import HGGEPNetwork, Output
from hggep_sc.prediction.chunks import predict_in_chunks
from hggep_sc.prediction.context import layers_at_pitch
from hggep_sc.section import open_sections
from hggep_sc.storage.checkpoint import Checkpoint, Parts


def lattice(rows, columns, spacing, turn=0.0):
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return spacing * np.argwhere(np.ones((rows, columns))) @ rotation


def nearest(xy):
    return KDTree(xy).query(xy, k=2)[0][:, 1]


CLOUD = np.random.default_rng(0).random((900, 2)) * 300  # one in 10 x 10


@pytest.mark.parametrize(
    "xy",
    [lattice(30, 24, 10.0), lattice(30, 24, 10.0, turn=0.3), CLOUD, np.concatenate([CLOUD, CLOUD[:50] + 0.01])],
    ids=["grid", "turned", "cloud", "pairs"],
)
@pytest.mark.parametrize("pitch", [20.0, 35.0, 60.0])
def test_every_spot_is_one_layers_own(xy, pitch):
    times = np.zeros(len(xy), dtype=int)
    for spots, own in layers_at_pitch(xy, pitch):
        assert (np.diff(spots) > 0).all()
        np.add.at(times, spots[own], 1)
    assert (times == 1).all()


@pytest.mark.parametrize(("spacing", "pitch"), [(10.0, 20.0), (8.0, 200.0), (16.0, 96.0)])
def test_layers_of_a_grid_are_grids(spacing, pitch):
    steps = round(pitch / spacing)
    xy = lattice(3 * steps, 2 * steps, spacing)
    layers = list(layers_at_pitch(xy, pitch))
    assert len(layers) == steps**2
    for spots, own in layers:
        assert own.all()
        np.testing.assert_allclose(nearest(xy[spots]), pitch)


def test_layers_of_a_cloud_are_about_as_sparse_as_asked_for():
    for spots, _ in layers_at_pitch(CLOUD, 40.0):
        assert 24 < np.median(nearest(CLOUD[spots])) < 50
        away = KDTree(CLOUD[spots]).query(CLOUD)[0]
        assert away.max() < 2 * 40.0  # and has no holes


def test_the_order_of_spots_does_not_matter():
    def layers(xy):
        return {
            (frozenset(map(tuple, xy[spots])), frozenset(map(tuple, xy[spots[own]])))
            for spots, own in layers_at_pitch(xy, 35.0)
        }

    assert layers(CLOUD) == layers(CLOUD[np.random.default_rng(1).permutation(len(CLOUD))])


class MeanAround(torch.nn.Module):
    """Predicts the mean feature of all that it sees beside a spot's own."""

    def decode(self, features, positions):
        mean = features.mean(0).expand_as(features)
        return Output(torch.cat([features, mean], dim=1), features, None)


def test_a_spot_sees_its_layer_alone():
    xy = lattice(12, 12, 10.0)
    values = np.arange(144, dtype=np.float32)[:, None, None]
    how = {"name": "A", "max_spots": 144, "pitch": 30.0}
    found, _ = predict_in_chunks(MeanAround(), values, xy, torch.from_numpy(xy), Config(), **how)
    place = (xy / 10).round().astype(int) % 3
    for spot in range(144):
        with_it = (place == place[spot]).all(axis=1)
        assert found[spot].tolist() == pytest.approx([spot, np.flatnonzero(with_it).mean()])


def of_grid(section, spacing_um, side):
    """Spots of a square grid in the middle of a section's image, in rows from the top."""
    mpp = section.uns["spatial"]["S3"]["scalefactors"]["microns_per_pixel"]
    middle = (section.obsm["spatial"].min(axis=0) + section.obsm["spatial"].max(axis=0)) / 2
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) - (side - 1) / 2
    spots = section[np.arange(side**2) % section.n_obs].copy()
    spots.obs = pd.DataFrame(index=[f"spot{i}" for i in range(side**2)])
    spots.obsm["spatial"] = middle + places * spacing_um / mpp
    return spots


def test_a_finer_grid_is_predicted_in_grids_of_the_training_pitch(sections, trained, monkeypatch):
    """Of a grid of 50 um, each of the four of 100 um, which the model knows, by itself."""
    monkeypatch.setattr(settings, "feature_route", "crops")  # in which a spot is seen whatever others are there
    model = copy(trained)
    model.linear = model.confidence = None  # which look at a section as a whole
    fine = of_grid(sections["S3"], 50, 10)
    column, row = np.arange(100) % 10 % 2, np.arange(100) // 10 % 2
    (whole,) = open_sections(fine)
    found, latent = model.predict(whole, device="cpu")
    for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here = (column == x) & (row == y)
        alone = model.predict(open_sections(fine[here].copy())[0], device="cpu")
        np.testing.assert_allclose(found[here], alone[0], atol=1e-4)
        np.testing.assert_allclose(latent[here], alone[1], atol=1e-4)
    together = model.predict(whole, device="cpu", chunk_spots=20)[1]
    assert np.abs(together - latent).max() > 0  # neighbours are seen


@pytest.mark.parametrize(
    ("spacing_um", "pitch_um"), [(100, None), (71, None), (50, 100), (8, 100)], ids=["same", "near", "half", "bins"]
)
def test_only_much_finer_grids_are_dealt_into_layers(sections, trained, spacing_um, pitch_um):
    (section,) = open_sections(of_grid(sections["S3"], spacing_um, 6))
    found = trained._pitch(section)
    assert found is None if pitch_um is None else found * section.mpp == pytest.approx(pitch_um, rel=0.05)


def test_layers_go_on_after_an_interruption(sections, trained, tmp_path, monkeypatch):
    (section,) = open_sections(of_grid(sections["S3"], 50, 10))
    expected = trained.predict(section, device="cpu")
    decoded, decode, write = [], HGGEPNetwork.decode, Parts.write

    def cut(self, spots, **tensors):
        if list(tmp_path.rglob("predicted/*")):  # the first of four layers
            raise RuntimeError("power cut")
        write(self, spots, **tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            trained.predict(copy(section), device="cpu", checkpoint=Checkpoint(tmp_path))
    monkeypatch.setattr("hggep_sc.features.store.describe_windows", lambda *_, **__: pytest.fail("is described"))
    monkeypatch.setattr(HGGEPNetwork, "decode", lambda *given: decoded.append(given) or decode(*given))
    again = copy(section)  # of which nothing is remembered
    found = trained.predict(again, device="cpu", checkpoint=Checkpoint(tmp_path))
    assert len(decoded) == 3
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
