from itertools import count
from threading import Barrier, current_thread

import numpy as np
import psutil
import pytest
import torch
from scipy.spatial import KDTree

from helpers import WAIT
from hggep_sc import Config
from hggep_sc.nn import HGGEPNetwork, Output, average_views
from hggep_sc.prediction.chunks import CORE, chunks_with_halo, predict_in_chunks, spatial_chunks, spots_at_once
from hggep_sc.storage.checkpoint import Parts


def cloud(n, seed=0, scale=(1000.0, 1000.0)):
    return np.random.default_rng(seed).random((n, 2)) * scale


def grid(rows, columns):
    return 100.0 * np.argwhere(np.ones((rows, columns)))


def free_memory(monkeypatch, free):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free})())


def everything(xy):
    return np.ones(len(xy), dtype=bool)


# --- chunks of training, and cores


@pytest.mark.parametrize("max_spots", [1, 7, 50, 299])
def test_chunks_are_a_partition_of_bounded_size(max_spots):
    chunks = spatial_chunks(cloud(300), max_spots)
    assert max(map(len, chunks)) <= max_spots
    assert min(map(len, chunks)) >= max(max_spots // 2, 1)  # and no crumbs
    np.testing.assert_array_equal(np.sort(np.concatenate(chunks)), np.arange(300))
    for chunk in chunks:
        np.testing.assert_array_equal(chunk, np.sort(chunk))


@pytest.mark.parametrize("max_spots", [None, 300, 1000])
def test_one_chunk(max_spots):
    (chunk,) = spatial_chunks(cloud(300), max_spots)
    np.testing.assert_array_equal(chunk, np.arange(300))


@pytest.mark.parametrize("xy", [cloud(189), np.argwhere(np.ones((21, 9))).astype(float)], ids=["cloud", "grid"])
def test_chunks_do_not_depend_on_the_order_of_spots(xy):
    def coordinates(points):
        return {frozenset(map(tuple, points[chunk])) for chunk in spatial_chunks(points, 30)}

    expected = coordinates(xy)
    for seed in range(3):
        assert coordinates(xy[np.random.default_rng(seed).permutation(189)]) == expected


@pytest.mark.parametrize("scale", [(1, 1), (5, 1), (1, 5)])
def test_chunks_are_compact(scale):
    xy = cloud(2000, scale=scale)
    chunks = spatial_chunks(xy, 125)
    sides = np.array([np.ptp(xy[chunk], axis=0) for chunk in chunks])
    assert sides.prod(1).sum() <= scale[0] * scale[1]  # boxes that do not overlap
    assert (sides.max(1) / sides.min(1)).max() < 3


# --- chunks with a halo

LAYOUTS = pytest.mark.parametrize(
    "xy", [cloud(500), cloud(500, scale=(90, 9000)), grid(31, 17)], ids=["cloud", "strip", "grid"]
)


@LAYOUTS
@pytest.mark.parametrize("max_spots", [1, 2, 30, 128, 499])
def test_each_spot_is_in_the_core_of_one_chunk(xy, max_spots):
    chunks = chunks_with_halo(xy, everything(xy), max_spots)
    cores = [chunk.spots[chunk.core] for chunk in chunks]
    np.testing.assert_array_equal(np.sort(np.concatenate(cores)), np.arange(len(xy)))
    assert {len(chunk.spots) for chunk in chunks} == {max_spots}
    assert max(map(len, cores)) <= max(CORE * max_spots, 1)
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.spots, np.unique(chunk.spots))


@LAYOUTS
def test_the_halo_is_what_lies_nearest_to_the_core(xy):
    """No spot outside a chunk is nearer to the core's bounding box than one in its halo."""
    for spots, core in chunks_with_halo(xy, everything(xy), 64):
        inside = xy[spots[core]]
        gap = np.array([max((inside.min(0) - p).max(), (p - inside.max(0)).max()) for p in xy])
        assert gap[spots[~core]].max() <= np.delete(gap, spots).min()


@pytest.mark.parametrize("max_spots", [500, 1000])
def test_one_chunk_where_all_spots_fit(max_spots):
    (chunk,) = chunks_with_halo(cloud(500), everything(cloud(500)), max_spots)
    np.testing.assert_array_equal(chunk.spots, np.arange(500))
    assert chunk.core.all()


@pytest.mark.parametrize("xy", [cloud(189), grid(21, 9)], ids=["cloud", "grid"])
def test_the_order_of_spots_does_not_matter(xy):
    def places(points):
        found = chunks_with_halo(points, everything(points), 40)
        return {tuple(frozenset(map(tuple, points[spots[part]])) for part in (core, ~core)) for spots, core in found}

    assert places(xy[np.random.default_rng(1).permutation(189)]) == places(xy)


def test_some_spots_alone_are_to_be_predicted():
    xy, core = cloud(300), np.arange(300) % 3 == 0
    chunks = chunks_with_halo(xy, core, 50)
    predicted = np.concatenate([chunk.spots[chunk.core] for chunk in chunks])
    np.testing.assert_array_equal(np.sort(predicted), np.flatnonzero(core))


# --- predicting in them


class Smoother:
    """A network that sees as far as the nearest spots: the mean of their features."""

    def __init__(self, neighbours=5, memory=10**9):
        self.neighbours, self.memory, self.sizes = neighbours, memory, []

    def decode(self, features, positions):
        self.sizes.append(len(features))
        if len(features) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        _, near = KDTree(positions.numpy()).query(
            positions.numpy(), k=range(1, min(self.neighbours, len(features)) + 1)
        )
        mean = features[torch.from_numpy(near)].mean(1)
        return Output(mean, 2 * mean, None)


def predict(network, xy, features, chunk_spots=None, config=None, name="A", **more):
    positions = torch.from_numpy(xy).float()
    config = config or Config()
    return predict_in_chunks(
        network,
        features.numpy(),
        xy,
        positions,
        config,
        name=name,
        max_spots=spots_at_once(len(xy), config, positions.device, name=name, chunk_spots=chunk_spots),
        **more,
    )


@pytest.fixture
def features():
    return torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = HGGEPNetwork(Config(width=16, vit_heads=2), 7, encoder=None, groups=(4, 6), n_fields=2).eval()
    for parameter in network.parameters():  # those that start at nothing too
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.orthogonal_(network.basis)
    return network


@torch.inference_mode()
def test_a_section_that_fits_is_predicted_whole_bit_for_bit(network):
    xy, seen = cloud(500), torch.randn(500, 2, 2, 10)
    expression, latent = average_views(network, seen, torch.from_numpy(xy).float())
    found = predict(network, xy, seen)
    for values, expected in zip(found, (expression, latent), strict=True):
        assert values.dtype == np.float32
        assert values.std(axis=0).max() > 0.01
        np.testing.assert_array_equal(values, expected.numpy())


@torch.inference_mode()
def test_the_network_predicts_each_core_within_its_chunk(network):
    xy, seen = cloud(500), torch.randn(500, 2, 2, 10)
    expression, latent = predict(network, xy, seen, chunk_spots=100)
    for spots, core in chunks_with_halo(xy, everything(xy), 100):
        out = average_views(network, seen[spots], torch.from_numpy(xy[spots]).float())
        for values, expected in zip((expression, latent), out, strict=True):
            np.testing.assert_allclose(values[spots[core]], expected.numpy()[core], atol=1e-5)


@pytest.mark.parametrize("chunk_spots", [None, 40])
def test_a_cpus_threads_share_the_chunks_each_computing_alone(network, monkeypatch, threads, chunk_spots):
    """Where there is one chunk, all are at work on it."""
    xy, seen, inside, calls = cloud(200), torch.randn(200, 2, 2, 10), set(), count()
    chunks = chunks_with_halo(xy, everything(xy), chunk_spots or 200)
    shared = threads > 1 and len(chunks) > 1
    together = Barrier(threads if shared else 1)
    with torch.inference_mode():
        expected = np.empty((200, 7))
        for spots, core in chunks:
            out, _ = average_views(network, seen[spots], torch.from_numpy(xy[spots]).float())
            expected[spots[core]] = out.numpy()[core]
    decode = network.decode

    def noted(features, positions):
        inside.add((current_thread().name, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        if next(calls) < together.parties:  # none goes on before every thread has begun
            together.wait(WAIT)
        return decode(features, positions)

    monkeypatch.setattr(network, "decode", noted)
    found, _ = predict(network, xy, seen, chunk_spots)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(inside) == (threads if shared else 1)
    assert {number for _, number, _ in inside} == {1 if shared else threads}
    assert all(inference for *_, inference in inside)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("room", [1, 2, 4])
def test_as_many_chunks_at_once_as_memory_holds(network, monkeypatch, room):
    inside, decode, together, calls = set(), network.decode, Barrier(min(room, 3)), count()

    def noted(*given):
        inside.add(current_thread().name)
        if next(calls) < together.parties:
            together.wait(WAIT)
        return decode(*given)

    monkeypatch.setattr(network, "decode", noted)
    free_memory(monkeypatch, room * 2 * 4 * 8 * 50**2)  # scores and weights of eight heads
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        predict(network, cloud(400), torch.randn(400, 1, 2, 10), 50, config=Config.from_preset("paper"))
    finally:
        torch.set_num_threads(before)
    assert len(inside) == min(room, 3)


def test_what_looks_no_farther_than_the_halo_does_not_see_the_chunks(features):
    xy = grid(25, 20)
    expression, latent = predict(Smoother(), xy, features, chunk_spots=100)
    whole = features.mean(1).numpy()[KDTree(xy).query(xy, k=5)[1]].mean(1)
    near = np.sort(KDTree(xy).query(xy, k=6)[0], axis=1)
    told = near[:, 4] < near[:, 5]  # elsewhere the fifth neighbour is one of several
    assert told.mean() > 0.7
    np.testing.assert_allclose(expression[told], whole[told], atol=1e-6)
    np.testing.assert_allclose(latent[told], 2 * whole[told], atol=1e-6)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_chunks_that_are_known_are_not_predicted_again(network, tmp_path, monkeypatch, threads, done):
    """To the bit, after a kill that left some of them."""
    xy, seen, kept = cloud(300), torch.randn(300, 2, 2, 10), Parts(tmp_path)
    expected = predict(network, xy, seen, 100)
    write, decode, decoded = Parts.write, network.decode, []

    def killed(self, spots, **tensors):
        if len(list(tmp_path.iterdir())) == done:
            raise KeyboardInterrupt
        write(self, spots, **tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(network, xy, seen, 100, kept=kept)
    monkeypatch.setattr(network, "decode", lambda *given: decoded.append(given) or decode(*given))
    for left in (len(chunks_with_halo(xy, everything(xy), 100)) - done, 0):
        decoded.clear()
        found = predict(network, xy, seen, 100, kept=kept)
        for values, whole in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, whole)
        assert len(decoded) == 2 * left  # views


def test_features_may_be_on_disk(network, tmp_path):
    seen = torch.randn(300, 2, 2, 10)
    on_disk = np.memmap(tmp_path / "features", dtype=np.float32, mode="w+", shape=seen.shape)
    on_disk[:] = seen.numpy()
    xy = cloud(300)
    positions, how = torch.from_numpy(xy).float(), {"name": "A", "max_spots": 100}
    found = predict_in_chunks(network, on_disk, xy, positions, Config(), **how)
    for values, expected in zip(found, predict(network, xy, seen, 100), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_out_of_memory_halves_the_chunks(features, warned):
    xy, network = grid(25, 20), Smoother(neighbours=1, memory=70)
    expression, _ = predict(network, xy, features[:, :1], chunk_spots=256, name="slide")
    np.testing.assert_array_equal(expression, features[:, 0].numpy())
    first, second = warned.messages
    assert "'slide'" in first
    assert "256 spots" in first
    assert "chunk_spots=128" in first
    assert "chunk_spots=64" in second
    assert network.sizes[:2] == [256, 128]
    assert set(network.sizes[2:]) == {64}  # what was learnt holds for the rest of the section


def test_out_of_memory_with_a_spot_alone(features):
    with pytest.raises(torch.OutOfMemoryError):
        predict(Smoother(memory=0), grid(5, 4), features[:20])


def test_another_error_is_not_taken_for_it(features, monkeypatch):
    network = Smoother()
    monkeypatch.setattr(network, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(network, grid(5, 4), features[:20])


class TestFreeMemory:
    """A network that takes sections whole, and memory that does not hold one."""

    paper = Config.from_preset("paper")  # eight heads

    def available(self, monkeypatch, n):
        free_memory(monkeypatch, 2 * 4 * 8 * n**2)

    def test_held(self, features, monkeypatch, warned):
        self.available(monkeypatch, 500)
        network = Smoother()
        predict(network, grid(25, 20), features, config=self.paper)
        assert network.sizes == [500, 500]  # two views
        assert not warned.messages

    def test_not_held(self, features, monkeypatch, warned):
        self.available(monkeypatch, 100)
        network = Smoother()
        predict(network, grid(25, 20), features, config=self.paper, name="slide")
        assert set(network.sizes) == {100}
        (message,) = warned.messages
        for part in ("'slide'", "500 spots at once", "chunks of 100", "chunk_spots="):
            assert part in message

    def test_a_given_number_counts(self, features, monkeypatch, warned):
        self.available(monkeypatch, 100)
        network = Smoother()
        predict(network, grid(25, 20), features, config=self.paper, chunk_spots=250)
        assert set(network.sizes) == {250}
        assert not warned.messages

    def test_bounds_the_chunks_of_any_preset(self, features, monkeypatch, warned):
        free_memory(monkeypatch, 2 * 4 * 4 * 60**2)
        network = Smoother()
        predict(network, grid(25, 20), features, config=Config())
        assert set(network.sizes) == {60}
        assert "chunks of 60" in warned.text
        warned.clear()
        predict(network, grid(25, 20), features, config=Config(chunk_spots=60))
        assert set(network.sizes) == {60}
        assert not warned.messages
