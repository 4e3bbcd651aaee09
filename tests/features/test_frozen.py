import errno
import gc

import numpy as np
import pytest
import torch

import hggep_sc.features.frozen as features_module
from helpers import Corner, MeanColour
from hggep_sc import settings
from hggep_sc.config import Config
from hggep_sc.features.colours import colour_and_texture
from hggep_sc.features.describe import DIHEDRAL, PLAIN, turned
from hggep_sc.features.frozen import (
    SHUFFLENET,
    Spool,
    _memory,
    feature_shape,
    features_of,
    is_frozen,
    kept_colours,
    make_encoder,
    stored_features,
    use_once,
    views_of,
)
from hggep_sc.features.patches import read_patches
from hggep_sc.nn import ModuleEncoder, ShuffleNetEncoder
from hggep_sc.prediction.linear import linear_features
from hggep_sc.section import open_sections
from hggep_sc.storage.checkpoint import Parts

CPU = torch.device("cpu")
CONFIG = Config(patch_size=16, fields_um=(16.0, 32.0), fields_px=(16.0, 32.0))
FIELDS = (16.0, 32.0)
ALL = np.arange(40)


@pytest.fixture
def reads(section):
    """How many times the section's image was opened."""
    opener, opened = section.opener, []
    section.opener = lambda: opened.append(1) or opener()
    return opened


def seen_by(section, encoder, config=CONFIG, parts=(ALL,), fields=FIELDS, **settings):
    return torch.cat(list(features_of(section, encoder, fields, config, device=CPU, **settings)(parts)))


# --- patches to features


def test_fields_are_encoded_each_by_itself(section):
    encoder = ModuleEncoder(Corner(), 16)
    both = seen_by(section, encoder)
    assert both.shape == feature_shape(section, encoder, CONFIG) == (40, 8, 2, 12)
    for i, field in enumerate(FIELDS):
        torch.testing.assert_close(seen_by(section, encoder, fields=(field,))[:, :, 0], both[:, :, i])
    assert not torch.allclose(both[:, :, 0], both[:, :, 1])


def test_what_looks_the_same_from_all_sides_has_the_same_features(section):
    """A mean does, but for the order of its sum; a corner does not."""
    mean, corner = (seen_by(section, ModuleEncoder(module, 16)) for module in (MeanColour(), Corner()))
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean))
    assert (corner - corner[:, :1]).abs().max() > 0.05


def test_views_asked_for(section):
    encoder = ModuleEncoder(Corner(), 16)
    every = seen_by(section, encoder)
    still = CONFIG.replace(flips=False)
    assert views_of(encoder, CONFIG) == DIHEDRAL
    assert views_of(encoder, still) == PLAIN
    assert torch.equal(seen_by(section, encoder, still), every[:, :1])
    assert torch.equal(seen_by(section, encoder, views=PLAIN), every[:, :1])
    assert torch.equal(seen_by(section, encoder, still, views=DIHEDRAL), every)


@pytest.mark.parametrize("size", [1, 9, 64])
def test_batches_change_nothing(section, size):
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder().eval()
    torch.testing.assert_close(
        seen_by(section, encoder, parts=[ALL[:10]], batch_size=size),
        seen_by(section, encoder)[:10],
        atol=1e-6,
        rtol=1e-4,
    )


def test_own_encoder_gives_what_its_plain_forward_pass_gives(sections, section):
    """Whatever is done to be fast."""
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder().eval()
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy[:6], FIELDS, 16))
    with torch.no_grad():
        expected = torch.stack([encoder(view.flatten(0, 1)) for view in turned(patches, DIHEDRAL)], dim=1)
    found = seen_by(section, encoder, parts=[ALL[:6]])
    torch.testing.assert_close(found.transpose(1, 2).flatten(0, 1), expected, rtol=1e-4, atol=1e-6)


# --- colours beside


def test_colours_come_with_the_features(section, reads):
    """One pass over the image; the linear path finds them."""
    encoder, known = ModuleEncoder(MeanColour(), 16), kept_colours(section, FIELDS, 16)
    seen_by(section, encoder, parts=[ALL[:15]], colours=known)
    assert np.isfinite(known[:15]).all()
    assert np.isnan(known[15:]).all()
    seen_by(section, encoder, parts=[ALL[15:]], colours=known)
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy, FIELDS, 16))
    expected = torch.stack([colour_and_texture(patches[:, i]) for i in range(2)], dim=1).numpy()
    np.testing.assert_allclose(known, expected, atol=1e-6)
    reads.clear()
    linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    assert not reads


def test_colours_are_left_out_where_nothing_asks_for_them(section):
    seen_by(section, ModuleEncoder(MeanColour(), 16))
    assert np.isnan(kept_colours(section, FIELDS, 16)).all()


@pytest.mark.parametrize("known", [0, 15])
def test_colours_that_are_not_known_are_read(section, known):
    encoder = ModuleEncoder(MeanColour(), 16)
    seen_by(section, encoder, colours=kept_colours(section, FIELDS, 16))
    expected = linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    _memory._kept.clear()
    with torch.inference_mode():  # as in prediction
        seen_by(section, encoder, parts=[ALL[:known]], colours=kept_colours(section, FIELDS, 16)) if known else None
    found = linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- on disk


@pytest.mark.parametrize("with_colours", [False, True])
def test_what_is_stored_is_not_computed_again(section, tmp_path, with_colours):
    """Two parts of three are there, from another process; the third then joins them."""

    def run(wanted):
        _memory._kept.clear()
        asked, colours = [], np.full((40, 2, 90), np.nan, dtype=np.float32) if with_colours else None
        computed = features_of(section, ModuleEncoder(Corner(), 16), FIELDS, CONFIG, device=CPU, colours=colours)
        through = stored_features(lambda few: asked.extend(few) or computed(few), Parts(tmp_path), CPU, colours)
        return torch.cat(list(through(wanted))), colours, [len(spots) for spots in asked]

    parts = [ALL[:10], ALL[10:25], ALL[25:]]
    assert run(parts[:2])[2] == [10, 15]
    features, colours, asked = run(parts)
    assert asked == [15]
    expected = np.full((40, 2, 90), np.nan, dtype=np.float32)
    _memory._kept.clear()
    assert torch.equal(features, seen_by(section, ModuleEncoder(Corner(), 16), parts=parts, colours=expected))
    if with_colours:
        np.testing.assert_array_equal(colours, expected)
    assert run(parts)[2] == []


# --- memory


@pytest.fixture(autouse=True)
def _empty_memory():
    _memory._kept.clear()


def test_features_are_computed_once(section, reads):
    encoder = ModuleEncoder(Corner(), 16)
    first = seen_by(section, encoder)
    assert len(reads) == 1
    assert torch.equal(seen_by(section, encoder), first)
    assert torch.equal(seen_by(section, ModuleEncoder(encoder.module, 16)), first)
    assert len(reads) == 1


def test_other_features_are_not_taken_for_them(sections, section, reads):
    class Colour(MeanColour):
        """Its hash does not tell the channel."""

        def __init__(self, channel):
            super().__init__()
            self.channel = channel

        def forward(self, pixels):
            return super().forward(pixels)[:, [self.channel]]

    red, green = ModuleEncoder(Colour(0), 16), ModuleEncoder(Colour(1), 16)
    assert not torch.allclose(seen_by(section, red), seen_by(section, green))
    larger = CONFIG.replace(patch_size=24)
    seen_by(section, red, larger)
    seen_by(section, red, parts=[ALL[::-1]])
    (other,) = open_sections(sections["S2"])
    assert not torch.equal(seen_by(other, red), seen_by(section, red))
    assert len(reads) == 4
    with torch.no_grad():
        mixing = ModuleEncoder(MeanColour(np.eye(3)), 16)
        before = seen_by(section, mixing)
        mixing.module.mixing *= 2
    torch.testing.assert_close(seen_by(section, mixing), 2 * before)


def test_memory_is_bounded(section, reads, monkeypatch):
    encoder = ModuleEncoder(MeanColour(), 16)
    one = seen_by(section, encoder).nbytes
    _memory._kept.clear()
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", 2 * one)
    configs = [CONFIG.replace(patch_size=size, linear=False) for size in (16, 17, 18)]
    for config in configs:  # the third puts out the first
        seen_by(section, encoder, config)
    assert sum(tensor.nbytes for kept in _memory._kept.values() for _, tensor in kept.values()) == 2 * one
    for config in configs[1:]:
        seen_by(section, encoder, config)
    assert len(reads) == 3
    seen_by(section, encoder, configs[0])
    assert len(reads) == 4


def test_what_is_too_large_is_not_kept(section, reads, monkeypatch):
    encoder = ModuleEncoder(MeanColour(), 16)
    expected = seen_by(section, encoder)
    _memory._kept.clear()
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", expected.nbytes - 1)
    assert all(torch.equal(seen_by(section, encoder), expected) for _ in range(2))
    assert len(reads) == 2
    assert not any(_memory._kept.values())


def test_nothing_is_kept_of_a_section_that_takes_too_much(sections, section, reads, monkeypatch):
    """Though its parts would fit: they would push each other out, and what is kept of others."""
    encoder = ModuleEncoder(MeanColour(), 16)
    (other,) = open_sections(sections["S2"])
    still = CONFIG.replace(linear=False)
    kept = seen_by(other, encoder, still, [ALL[:10]])
    monkeypatch.setattr(settings, "feature_memory", seen_by(section, encoder, still).nbytes - 1)
    _memory._kept[section].clear()
    for spots in (ALL[:20], ALL[20:]):
        seen_by(section, encoder, still, [spots])
    assert not _memory._kept[section]
    assert [tensor.nbytes for _, tensor in _memory._kept[other].values()] == [kept.nbytes]


def test_nothing_is_kept_of_a_section_that_is_used_once(section, reads):
    encoder = ModuleEncoder(MeanColour(), 16)
    expected = seen_by(section, encoder)
    _memory._kept.clear()
    use_once([section])
    assert torch.equal(seen_by(section, encoder), expected)
    assert section not in _memory._kept
    assert len(reads) == 2


def test_a_section_that_is_gone_is_forgotten(sections):
    encoder = ModuleEncoder(MeanColour(), 16)
    (passing,) = open_sections(sections["S1"])
    seen_by(passing, encoder)
    assert len(_memory._kept) == 1
    del passing
    gc.collect()
    assert len(_memory._kept) == 0


# --- waiting


@pytest.mark.parametrize("limit", [1, 2**20])
def test_what_waits_comes_back(monkeypatch, limit):
    monkeypatch.setattr(features_module, "SPOOLED", limit)
    values = np.random.default_rng(0).random((40, 3, 2), dtype=np.float32)
    parts = np.split(np.random.default_rng(1).permutation(40), [7, 30])
    with Spool() as spool:
        for spots in parts:
            spool.add(spots, values[spots])
            list(spool)  # what is added after it was read joins the rest
        for _ in range(2):
            found = list(spool)
            assert len(found) == 3
            for (spots, seen), part in zip(found, sorted(parts, key=lambda part: part[0]), strict=True):
                np.testing.assert_array_equal(spots, part)
                np.testing.assert_array_equal(seen, values[part])


# --- embeddings


def test_embeddings_have_one_view_and_one_field_and_need_no_image(sections):
    adata = sections["S1"][::-1].copy()
    adata.obsm["X_emb"] = np.random.default_rng(0).normal(size=(40, 5))
    (section,) = open_sections(adata)
    section.opener = lambda: pytest.fail("the image is not needed")
    spots = np.array([7, 0, 39])
    found = seen_by(section, "X_emb", parts=[spots])
    assert feature_shape(section, "X_emb", CONFIG) == (40, 1, 1, 5)
    assert views_of("X_emb", CONFIG) == PLAIN
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[:, 0, 0].numpy(), adata.obsm["X_emb"][spots].astype(np.float32))


# --- what sees the spots


def test_what_is_frozen(sections):
    still, learning = Config(), Config(gem=True)
    own = make_encoder(SHUFFLENET, still, None)
    assert isinstance(own, ShuffleNetEncoder)
    assert make_encoder("X_emb", still, None) == "X_emb"
    module = make_encoder(MeanColour(), still, None)
    assert isinstance(module, ModuleEncoder)
    assert make_encoder(SHUFFLENET, Config.from_preset("published"), None) is None
    assert [is_frozen(encoder, still) for encoder in (own, "X_emb", module, None)] == [True, True, True, False]
    assert [is_frozen(encoder, learning) for encoder in (own, "X_emb", module, None)] == [False, True, True, False]


@pytest.mark.parametrize("encoder", [None, 3, MeanColour])
def test_neither_a_name_nor_a_module_is_refused(encoder):
    with pytest.raises(TypeError, match=r'encoder must be "shufflenet", the obsm slot .* or a torch\.nn\.Module'):
        make_encoder(encoder, Config(), None)


@pytest.mark.parametrize("encoder", ["X_emb", MeanColour()])
def test_the_published_network_has_its_own(encoder):
    with pytest.raises(ValueError, match=r"the published network has its own"):
        make_encoder(encoder, Config.from_preset("published"), None)


@pytest.mark.parametrize("encoder", ["X_emb", MeanColour()])
@pytest.mark.parametrize("setting", [{"gem": True}, {"cbam": True}, {"backbone_learning_rate": 1e-5}])
def test_what_an_encoder_of_ones_own_would_ignore_is_refused(encoder, setting):
    with pytest.raises(ValueError, match=r"yours is not trained: config=\{'gem': False, 'cbam': False"):
        make_encoder(encoder, Config().replace(**setting), None)


def test_a_full_disk_names_the_folder(monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Spool() as spool:
        monkeypatch.setattr(spool._file, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: the features .* set TMPDIR") as raised:
            spool.add(ALL, np.zeros((40, 3), dtype=np.float32))
    assert raised.value.errno == errno.ENOSPC
