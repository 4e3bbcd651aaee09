import gc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from helpers import Corner, MeanColour, alive
from hggep_sc import settings
from hggep_sc.features import slide, store
from hggep_sc.features.encoders import ObsmEncoder
from hggep_sc.features.patches import read_patches
from hggep_sc.features.store import _memory, describe_section, gathered, use_once
from hggep_sc.nn import ModuleEncoder, ShuffleNetEncoder
from hggep_sc.section import open_sections
from hggep_sc.storage.checkpoint import Parts
from plain_colours import plain_colour_statistics
from plain_windows import averaged_by_loop

CPU = torch.device("cpu")
FIELDS, SIZE = (16.0, 32.0), 16
CROP = 80  # px of a window and what is given around it


@pytest.fixture(autouse=True)
def _empty_memory():
    _memory._kept.clear()


@pytest.fixture
def reads(section):
    """How many times the section's image was opened."""
    opener, opened = section.opener, []
    section.opener = lambda: opened.append(1) or opener()
    return opened


@pytest.fixture(scope="module")
def own():
    """HGGEP's own encoder, with random weights."""
    torch.manual_seed(0)
    return alive(ShuffleNetEncoder())


def described(section, encoder, *, fields=FIELDS, size=SIZE, **how):
    return describe_section(section, encoder, fields, size, device=CPU, **how)


def module_of(module):
    return ModuleEncoder(module, SIZE)


def assert_same(a, b):
    np.testing.assert_array_equal(a.encoded, b.encoded)
    np.testing.assert_array_equal(a.colours, b.colours)


def crops_of(section, spots):
    """What is cut out for windows that are encoded by themselves, uint8 (n, fields, 3, S, S)."""
    with section.open_image() as image:
        steps = [field / SIZE for field in FIELDS]
        crops = [image.read_patches(section.xy[spots], field=CROP * step, size=CROP) for step in steps]
    return np.stack(crops, axis=1)


# --- what sees the spots


def test_a_users_module_sees_each_patch_by_itself(section):
    """In every field."""
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy, FIELDS, SIZE))
    expected = [Corner()(patches[:, i] / 255) for i in range(2)]
    found = described(section, module_of(Corner()))
    assert found.colours is None
    assert found.encoded.dtype == np.float32
    np.testing.assert_allclose(found.encoded, np.transpose(expected, (1, 0, 2)), atol=1e-6)


def test_own_encoder_sees_what_is_around_a_window_too(section, monkeypatch, own):
    """Plainly: each crop by itself, its maps averaged over the window by a loop."""
    monkeypatch.setattr(settings, "feature_route", "crops")
    spots = np.arange(0, 40, 8)
    with torch.no_grad():
        maps = [of_stage.numpy() for of_stage in own.maps(torch.from_numpy(crops_of(section, spots)).flatten(0, 1))]
    low = np.full(2, (CROP - SIZE) / 2)
    expected = [averaged_by_loop(of_crop, low, SIZE, CROP) for of_crop in zip(*maps, strict=True)]
    expected = np.array(expected).reshape(len(spots), 2, -1)
    found = described(section, own).encoded
    assert found.shape == (40, 2, sum(own.groups))
    np.testing.assert_allclose(found[spots], expected, atol=1e-4 * np.abs(expected).max())


def test_colours_beside_an_encoder_and_alone(section, monkeypatch, own):
    """Against scikit-image's, of crops without what is around the window."""
    monkeypatch.setattr(settings, "feature_route", "crops")
    spots = np.arange(0, 40, 8)
    expected = [[plain_colour_statistics(crop, 32) for crop in of_spot] for of_spot in crops_of(section, spots)]
    alone = described(section, None, colours=True)
    assert alone.encoded is None
    np.testing.assert_allclose(alone.colours[spots], expected, atol=3e-4)
    for encoder in (own, module_of(MeanColour())):
        _memory._kept.clear()
        beside = described(section, encoder, colours=True)
        np.testing.assert_array_equal(beside.colours, alone.colours)
        assert len(beside.encoded) == 40


def test_embeddings_have_one_field_and_need_no_image(sections):
    adata = sections["S1"][::-1].copy()
    adata.obsm["X_emb"] = np.random.default_rng(0).normal(size=(40, 5))
    (section,) = open_sections(adata)
    section.opener = lambda: pytest.fail("the image is not needed")
    told = []
    found = described(section, ObsmEncoder("X_emb"), colours=True, advance=told.append)
    assert found.colours is None
    assert found.encoded.dtype == np.float32
    assert told == [40]
    np.testing.assert_array_equal(found.encoded, adata.obsm["X_emb"].astype(np.float32)[:, None])


def test_features_that_are_no_numbers_are_refused(section):
    class Spoilt(MeanColour):
        def forward(self, pixels):
            found = super().forward(pixels)
            return torch.where(pixels.sum((1, 2, 3))[:, None] > 0, torch.inf, found)  # not where it is tried

    with pytest.raises(ValueError, match="section 'S1': the encoder gives features that are NaN or infinite"):
        described(section, module_of(Spoilt()))
    assert not _memory._kept


# --- batches, parts, views


@pytest.mark.parametrize("size", [1, 9, 64])
def test_batches_change_nothing(section, own, size):
    for encoder in (own, module_of(Corner())):
        expected = described(section, encoder, colours=True)
        _memory._kept.clear()
        assert_same(described(section, encoder, colours=True, batch_size=size), expected)


def test_parts_change_nothing(section, monkeypatch, own):
    monkeypatch.setattr(settings, "feature_route", "crops")
    for encoder in (own, module_of(Corner())):
        expected = described(section, encoder, colours=True)
        _memory._kept.clear()
        with monkeypatch.context() as patch:
            patch.setattr(slide, "PART_SPOTS", 7)
            found = described(section, encoder, colours=True)
        np.testing.assert_allclose(found.encoded, expected.encoded, atol=1e-5)
        np.testing.assert_allclose(found.colours, expected.colours, atol=1e-6)
        _memory._kept.clear()


def test_an_encoder_in_bfloat16(section, monkeypatch, own):
    """It rounds more coarsely, colours stay, and neither precision's features are taken for the other's."""
    single = described(section, own, colours=True)
    monkeypatch.setattr(settings, "encoder_precision", "bfloat16")
    mixed = described(section, own, colours=True)
    assert (mixed.encoded != single.encoded).mean() > 0.5
    assert np.corrcoef(mixed.encoded.ravel(), single.encoded.ravel())[0, 1] > 0.95  # random weights let rounding grow
    np.testing.assert_array_equal(mixed.colours, single.colours)
    monkeypatch.setattr(settings, "encoder_precision", "float32")
    np.testing.assert_array_equal(described(section, own).encoded, single.encoded)


def test_every_spot_is_told_of_once(section, monkeypatch):
    monkeypatch.setattr(slide, "PART_SPOTS", 7)
    told = []
    for encoder in (None, module_of(MeanColour())):
        for _ in range(2):  # computed, and remembered
            described(section, encoder, colours=True, advance=told.append)
            assert sum(told) == 40
            told.clear()


def test_features_that_memory_does_not_hold_are_on_disk(section, monkeypatch):
    encoder = module_of(Corner())
    expected = described(section, encoder, colours=True)
    _memory._kept.clear()
    monkeypatch.setattr(settings, "patch_memory", 0)
    found = described(section, encoder, colours=True)
    assert isinstance(found.encoded, np.memmap)
    assert isinstance(found.colours, np.memmap)
    assert_same(found, expected)


# --- parts that are kept

PARTS = [np.array([0, 3]), np.array([1, 4, 6]), np.array([2, 5])]


def values_of(spots):
    return torch.from_numpy(spots)[:, None, None] * torch.ones(2, 3)


def test_parts_are_put_in_their_places(tmp_path):
    told, asked = [], []

    def see(parts):
        for spots in parts:
            asked.append(len(spots))
            yield {"a": values_of(spots), "b": -torch.from_numpy(spots).float()}

    for kept in (None, Parts(None), Parts(tmp_path), Parts(tmp_path)):  # the last is of a later process
        found = gathered(PARTS, see, kept, told.append)
        assert found.keys() == {"a", "b"}
        assert all(array.dtype == np.float32 for array in found.values())
        np.testing.assert_array_equal(found["a"], values_of(np.arange(7)).numpy())
        np.testing.assert_array_equal(found["b"], -np.arange(7))
    assert told == 4 * [2, 3, 2]
    assert asked == 3 * [2, 3, 2]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_killed_call_loses_a_part(tmp_path, lost):
    """Those before it are read, and those after it are computed, once each."""
    asked, ended = [], []

    def see(parts, stops):
        try:
            for spots in parts:
                if stops and np.array_equal(spots, PARTS[lost]):
                    raise KeyboardInterrupt
                asked.append(tuple(spots))
                yield {"a": values_of(spots)}
        finally:
            ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        gathered(PARTS, lambda parts: see(parts, True), Parts(tmp_path))
    assert asked == [tuple(spots) for spots in PARTS[:lost]]
    found = gathered(PARTS, lambda parts: see(parts, False), Parts(tmp_path))
    assert asked == [tuple(spots) for spots in PARTS]
    assert len(ended) == 2
    np.testing.assert_array_equal(found["a"], values_of(np.arange(7)).numpy())


def test_what_sees_has_ended_where_a_part_cannot_be_put_away(tmp_path, monkeypatch):
    ended = []

    def see(parts):
        try:
            for spots in parts:
                yield {"a": values_of(spots)}
        finally:
            ended.append(1)

    monkeypatch.setattr(Parts, "write", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gathered(PARTS, see, Parts(tmp_path))
    assert ended == [1]


@pytest.mark.parametrize("way", ["maps", "crops"])
@pytest.mark.parametrize("kind", ["own", "module"])
def test_what_is_kept_is_not_computed_again(section, tmp_path, monkeypatch, own, kind, way):
    """To the bit; a section of which one part is lost has that part computed."""
    monkeypatch.setattr(settings, "feature_route", way)
    monkeypatch.setattr(slide, "PART_SPOTS", 10)
    encoder = own if kind == "own" else module_of(Corner())
    expected = described(section, encoder, colours=True)
    _memory._kept.clear()
    assert_same(described(section, encoder, colours=True, kept=Parts(tmp_path)), expected)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    files[1].unlink()
    looked_at, windows = [], slide.describe_windows

    def noted(image, parts, *args, **more):
        looked_at.extend(map(len, parts))
        return windows(image, parts, *args, **more)

    monkeypatch.setattr("hggep_sc.features.store.describe_windows", noted)
    for computed in (10, 0):
        _memory._kept.clear()
        looked_at.clear()
        assert_same(described(section, encoder, colours=True, kept=Parts(tmp_path)), expected)
        assert sum(looked_at) == computed


# --- memory


def kept_bytes():
    return sum(array.nbytes for of_section in _memory._kept.values() for _, array in of_section.values())


def test_features_are_computed_once(section, reads):
    encoder = module_of(Corner())
    first = described(section, encoder, colours=True)
    assert len(reads) == 1
    assert_same(described(section, encoder, colours=True), first)
    assert_same(described(section, ModuleEncoder(encoder.module, SIZE), colours=True), first)
    assert len(reads) == 1


def test_what_is_missing_is_added(section, reads, monkeypatch):
    """The encoder's to colours, and colours to the encoder's; what is known is not computed again."""
    seen = []

    class Counted(Corner):
        def forward(self, pixels):
            seen.append(len(pixels))
            return super().forward(pixels)

    encoder = module_of(Counted())
    expected = described(section, module_of(Corner()), colours=True)
    colour_passes, statistics = [], store.colour_statistics
    monkeypatch.setattr(store, "colour_statistics", lambda x: colour_passes.append(1) or statistics(x))
    for first in ("encoded", "colours"):
        _memory._kept.clear()
        reads.clear()
        colour_passes.clear()
        seen.clear()
        if first == "encoded":
            assert described(section, encoder).colours is None
        else:
            assert described(section, None, colours=True).encoded is None
        for _ in range(2):
            assert_same(described(section, encoder, colours=True), expected)
        assert (sum(seen), len(colour_passes), len(reads)) == (40 * 2, 1, 2)


def test_other_features_are_not_taken_for_them(sections, section, reads, monkeypatch, own):
    class Colour(MeanColour):
        """Its hash does not tell the channel."""

        def __init__(self, channel):
            super().__init__()
            self.channel = channel

        def forward(self, pixels):
            return super().forward(pixels)[:, [self.channel]]

    red, green = module_of(Colour(0)), module_of(Colour(1))
    assert not np.allclose(described(section, red).encoded, described(section, green).encoded)
    described(section, red, size=24)
    described(section, red, fields=(16.0, 48.0))
    (other,) = open_sections(sections["S2"])
    assert not np.array_equal(described(other, red).encoded, described(section, red).encoded)
    assert len(reads) == 4
    with torch.no_grad():
        mixing = module_of(MeanColour(np.eye(3)))
        before = described(section, mixing).encoded
        mixing.module.mixing *= 2
    np.testing.assert_allclose(described(section, mixing).encoded, 2 * before, rtol=1e-5)
    reads.clear()
    for way in ("maps", "crops", "maps"):
        monkeypatch.setattr(settings, "feature_route", way)
        described(section, own)
    assert len(reads) == 2


def test_memory_is_bounded_and_gives_up_what_was_used_longest_ago(section, reads, monkeypatch):
    encoder = module_of(MeanColour())
    one = described(section, encoder).encoded.nbytes
    _memory._kept.clear()
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", 2 * one)
    for size in (16, 17, 16, 18):
        described(section, encoder, size=size)
        assert kept_bytes() <= 2 * one
    assert len(reads) == 3
    for size in (16, 18):
        described(section, encoder, size=size)
    assert len(reads) == 3
    described(section, encoder, size=17)
    assert len(reads) == 4


def test_what_is_too_large_is_not_kept(sections, section, reads, monkeypatch):
    """Nor does it push out what is."""
    (other,) = open_sections(sections["S2"])
    small, large = module_of(MeanColour()), module_of(Corner())
    held = described(other, small).encoded.nbytes
    expected = described(section, large)
    _memory._kept.pop(section)
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", expected.encoded.nbytes - 1)
    for _ in range(2):
        assert_same(described(section, large), expected)
    assert len(reads) == 2
    assert kept_bytes() == held


def test_nothing_is_kept_of_a_section_that_is_used_once(section, reads):
    encoder = module_of(MeanColour())
    expected = described(section, encoder, colours=True)
    _memory._kept.clear()
    use_once([section])
    assert_same(described(section, encoder, colours=True), expected)
    assert section not in _memory._kept
    assert len(reads) == 2


def test_a_section_that_is_gone_is_forgotten(sections):
    (passing,) = open_sections(sections["S1"])
    described(passing, module_of(MeanColour()))
    assert len(_memory._kept) == 1
    del passing
    gc.collect()
    assert len(_memory._kept) == 0


def test_threads_share_a_memory_that_is_full(sections, section, monkeypatch):
    """As folds of a cross-validation do: each gets its own, and no more is kept than may be."""
    (other,) = open_sections(sections["S2"])
    encoder = module_of(MeanColour())
    calls = [(of, size) for of in (section, other) for size in (16, 17, 18)]
    expected = {call: described(call[0], encoder, size=call[1]).encoded for call in calls}
    _memory._kept.clear()
    limit = 2 * expected[calls[0]].nbytes
    monkeypatch.setattr(settings, "feature_memory", limit)
    order = [calls[i] for i in np.random.default_rng(0).integers(0, len(calls), size=60)]
    assert any(a == b for a, b in pairwise(order))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: described(call[0], encoder, size=call[1]).encoded, order))
    for call, encoded in zip(order, found, strict=True):
        np.testing.assert_array_equal(encoded, expected[call])
    assert 0 < kept_bytes() <= limit
