import errno
import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event, current_thread
from threading import enumerate as enumerate_threads
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hggep_sc.features as features_module
from helpers import MeanColour
from hggep_sc import settings
from hggep_sc.colours import colour_and_texture
from hggep_sc.config import Config
from hggep_sc.features import (
    DIHEDRAL,
    PLAIN,
    SHUFFLENET,
    Spool,
    _ahead,
    _memory,
    describe_spots,
    encode_spots,
    feature_shape,
    is_frozen,
    kept_colours,
    make_encoder,
    open_features,
    turned,
    use_once,
    views_of,
)
from hggep_sc.linear import linear_features
from hggep_sc.nn import ModuleEncoder, ShuffleNetEncoder
from hggep_sc.patches import read_patches
from hggep_sc.section import open_sections
from hggep_sc.training.augmentation import dihedral

CPU = torch.device("cpu")
CONFIG = Config(patch_size=16, fields_um=(16.0, 32.0), fields_px=(16.0, 32.0))
FIELDS = (16.0, 32.0)
ALL = np.arange(40)


class Corner(nn.Module):
    """What turning and mirroring change: four pixels of a corner."""

    def forward(self, pixels):
        return pixels[:, :, :2, 3:5].flatten(1)


@pytest.fixture
def section(sections):
    """On whole pixels, so that a patch is a slice of the image."""
    sections["S1"].obsm["spatial"] = np.floor(sections["S1"].obsm["spatial"])
    return open_sections(sections["S1"])[0]


@pytest.fixture
def reads(section):
    """How many times the section's image was opened."""
    opener, opened = section.opener, []
    section.opener = lambda: opened.append(1) or opener()
    return opened


@contextmanager
def opened(section, encoder, config=CONFIG, **settings):
    with open_features(section, encoder, FIELDS, config, device=CPU, **settings) as features:
        yield features


def features_of(section, encoder, config=CONFIG, spots=ALL, **settings):
    with opened(section, encoder, config, **settings) as features:
        return features(spots)


def pixels_of(adata):
    return np.asarray(Image.open(adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]).convert("RGB"))


# --- patches to features


@pytest.mark.parametrize("batch_size", [64, 7])
def test_every_spot_view_and_field_against_slices_of_the_image(sections, section, batch_size):
    """One by one: cut from the array, mirrored, turned, encoded."""
    image, encoder = pixels_of(sections["S1"]), Corner()
    inside = [i for i, (x, y) in enumerate(section.xy) if 8 <= x < image.shape[1] - 8 and 8 <= y < image.shape[0] - 8]
    assert len(inside) > 20
    expected = np.empty((len(inside), 8, 12))
    for row, spot in enumerate(inside):
        x, y = section.xy[spot].astype(int)
        cut = torch.from_numpy(image[y - 8 : y + 8, x - 8 : x + 8].copy()).permute(2, 0, 1)
        for view in range(8):
            turned = torch.rot90(cut.flip(-1) if view >= 4 else cut, view % 4, (-2, -1))
            expected[row, view] = encoder(turned[None]).numpy()[0]
    with section.open_image() as opened_image:
        found = encode_spots(
            opened_image,
            section.xy[inside],
            (16.0,),
            16,
            lambda patches: torch.stack([encoder(patches[:, 0])], dim=1),
            views=DIHEDRAL,
            batch_size=batch_size,
            device=CPU,
        )
    assert found.shape == (len(inside), 8, 1, 12)
    np.testing.assert_array_equal(found[:, :, 0].numpy(), expected)


def test_views_are_the_eight_symmetries_and_start_with_none():
    assert len(set(DIHEDRAL)) == 8
    assert DIHEDRAL[0] == PLAIN[0] == (0, False)


def test_fields_are_encoded_each_by_itself(section):
    encoder = ModuleEncoder(Corner(), 16)
    both = features_of(section, encoder)
    assert both.shape == feature_shape(section, encoder, CONFIG) == (40, 8, 2, 12)
    for i, field in enumerate(FIELDS):
        with open_features(section, encoder, (field,), CONFIG, device=CPU) as features:
            torch.testing.assert_close(features(ALL)[:, :, 0], both[:, :, i])
    assert not torch.allclose(both[:, :, 0], both[:, :, 1])


def test_what_looks_the_same_from_all_sides_has_the_same_features(section):
    """A mean does, but for the order of its sum; a corner does not."""
    mean, corner = (features_of(section, ModuleEncoder(module, 16)) for module in (MeanColour(), Corner()))
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean))
    assert (corner - corner[:, :1]).abs().max() > 0.05


def test_views_asked_for(section):
    encoder = ModuleEncoder(Corner(), 16)
    every = features_of(section, encoder)
    still = CONFIG.replace(flips=False)
    assert views_of(encoder, CONFIG) == DIHEDRAL
    assert views_of(encoder, still) == PLAIN
    assert torch.equal(features_of(section, encoder, still), every[:, :1])
    assert torch.equal(features_of(section, encoder, views=PLAIN), every[:, :1])
    assert torch.equal(features_of(section, encoder, still, views=DIHEDRAL), every)


@pytest.mark.parametrize("size", [1, 9, 64])
def test_batches_change_nothing(section, size):
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder().eval()
    torch.testing.assert_close(
        features_of(section, encoder, spots=ALL[:10], batch_size=size),
        features_of(section, encoder)[:10],
        atol=1e-6,
        rtol=1e-4,
    )


def test_views_turn_after_mirroring():
    patches = torch.randint(0, 256, (5, 2, 3, 6, 6), dtype=torch.uint8)
    for (turns, flip), found in zip(DIHEDRAL, turned(patches, DIHEDRAL), strict=True):
        expected = dihedral(patches, torch.full((5,), turns), torch.full((5,), flip))
        assert torch.equal(found, expected)
        assert found.is_contiguous()


def test_own_encoder_gives_what_its_plain_forward_pass_gives(sections, section):
    """Whatever is done to be fast."""
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder().eval()
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy[:6], FIELDS, 16))
    with torch.no_grad():
        expected = torch.stack([encoder(view.flatten(0, 1)) for view in turned(patches, DIHEDRAL)], dim=1)
    found = features_of(section, encoder, spots=ALL[:6])
    torch.testing.assert_close(found.transpose(1, 2).flatten(0, 1), expected, rtol=1e-4, atol=1e-6)


# --- reading ahead


def read_by(image, xy, batch_size):
    """The patches that `describe_spots` shows a function, and how many at once."""
    sizes = []

    def seen(patches):
        sizes.append(len(patches))
        return patches

    (patches,) = describe_spots(image, xy, FIELDS, 16, [seen], batch_size=batch_size, device=CPU)
    return patches, sizes


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 64])
def test_what_is_described_is_what_is_there(section, batch_size, threads):
    with section.open_image() as image:
        patches, sizes = read_by(image, section.xy, batch_size)
        np.testing.assert_array_equal(patches.numpy(), read_patches(image, section.xy, FIELDS, 16))
    assert max(sizes) == min(-(-batch_size // threads), len(section.xy))  # the threads share a batch
    assert sum(sizes) == len(section.xy)


def test_each_thread_computes_alone_and_the_callers_keeps_its_number(section, threads):
    inside = set()

    def noted(patches):
        inside.add((current_thread().name, torch.get_num_threads()))
        sleep(0.01)
        return patches

    with section.open_image() as image:
        describe_spots(image, section.xy, FIELDS, 16, [noted], batch_size=threads, device=CPU)
    assert len(inside) == threads
    assert {number for _, number in inside} == {1}
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as other:  # a thread of the user's, started later
        assert other.submit(torch.get_num_threads).result() == threads


def test_a_users_module_is_never_in_two_threads(section, threads):
    """It may keep what it saw for later, as by a hook."""

    class Noting(MeanColour):
        def forward(self, patches):
            where.add(current_thread().name)
            return super().forward(patches)

    where = set()
    features_of(section, ModuleEncoder(Noting(), 16), batch_size=4)
    assert where == {"MainThread"}


def test_next_batch_is_read_while_one_is_worked_on(section, monkeypatch):
    started = [Event() for _ in range(3)]
    xy = section.xy[:3]

    def noted(image, xy, *args):
        started[next(spot for spot in range(3) if np.array_equal(xy[0], section.xy[spot]))].set()
        return read_patches(image, xy, *args)

    monkeypatch.setattr(features_module, "read_patches", noted)
    with section.open_image() as image:

        def read(spots):
            return features_module.read_patches(image, xy[spots], FIELDS, 16)

        with closing(_ahead(read, [slice(i, i + 1) for i in range(3)], 1)) as batches:
            next(batches)
            assert started[1].wait(timeout=30)
            assert not started[2].is_set()  # memory is bounded


def test_an_error_in_reading_is_raised_and_no_thread_is_left(section, monkeypatch):
    def broken(image, xy, *args):
        if np.array_equal(xy[0], section.xy[20]):
            raise ValueError("the pixels cannot be read")
        return read_patches(image, xy, *args)

    monkeypatch.setattr(features_module, "read_patches", broken)
    with pytest.raises(ValueError, match="the pixels cannot be read"):
        features_of(section, ModuleEncoder(MeanColour(), 16), batch_size=10)
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("patches")]
    assert not any(_memory._kept[section].keys() - {("colour", FIELDS, 16)})


def test_an_error_in_the_encoder_ends_reading_before_the_image_is_closed(section, monkeypatch):
    closed, opener = [], section.opener

    def opened_and_noted():
        image = opener()
        close = image.close
        image.close = lambda: (closed.append(len(reading)), close())
        return image

    reading = []

    def slow(image, xy, *args):
        reading.append(1)
        sleep(0.05)
        patches = read_patches(image, xy, *args)
        reading.pop()
        return patches

    class Broken(nn.Module):
        def forward(self, pixels):
            if len(pixels) > 2:  # not when it is tried
                raise RuntimeError("encoder")
            return pixels.mean((2, 3))

    section.opener = opened_and_noted
    monkeypatch.setattr(features_module, "read_patches", slow)
    with pytest.raises(RuntimeError, match="encoder"):
        features_of(section, ModuleEncoder(Broken(), 16), batch_size=10)
    assert closed == [0]


# --- a GPU without room


class Crowded(MeanColour):
    """Runs out of memory with more than some spots."""

    def __init__(self, room):
        super().__init__()
        self.room, self.sizes = room, []

    def forward(self, pixels):
        self.sizes.append(len(pixels) // len(FIELDS))
        if self.sizes[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(pixels)


@pytest.mark.parametrize(("room", "halves"), [(20, []), (19, [10]), (6, [10, 5]), (1, [10, 5, 3, 2, 1])])
def test_out_of_memory_halves_what_is_encoded_at_once(section, monkeypatch, caplog, room, halves):
    """From there on in the whole section, whose spots are asked for in two parts."""
    monkeypatch.setattr(features_module, "CPU_PATCHES", 1000)  # all at once, as on a GPU
    crowded = Crowded(room)
    encoder = ModuleEncoder(crowded, 16)
    still = CONFIG.replace(flips=False, linear=False)
    undisturbed = features_of(section, ModuleEncoder(MeanColour(), 16), still)
    crowded.sizes.clear()  # of when it was tried
    with caplog.at_level(logging.WARNING), opened(section, encoder, still, batch_size=20) as features:
        found = torch.cat([features(part) for part in (ALL[:25], ALL[25:])])
    torch.testing.assert_close(found, undisturbed)
    *too_many, most = 20, *halves
    assert [size for size in crowded.sizes if size > room] == too_many
    assert max(size for size in crowded.sizes if size <= room) == most
    assert len(caplog.messages) == len(halves)
    for message, half in zip(caplog.messages, halves, strict=True):
        assert f"batch_size={half} in tl.predict" in message


def test_out_of_memory_with_a_spot_alone(section):
    crowded = Crowded(1)
    encoder = ModuleEncoder(crowded, 16)
    crowded.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        features_of(section, encoder)
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("patches")]


# --- colours beside


def test_colours_come_with_the_features(section, reads):
    """One pass over the image; the linear path finds them."""
    encoder = ModuleEncoder(MeanColour(), 16)
    features_of(section, encoder, spots=ALL[:15])
    known = kept_colours(section, FIELDS, 16)
    assert np.isfinite(known[:15]).all()
    assert np.isnan(known[15:]).all()
    features_of(section, encoder, spots=ALL[15:])
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy, FIELDS, 16))
    expected = torch.stack([colour_and_texture(patches[:, i]) for i in range(2)], dim=1).numpy()
    np.testing.assert_allclose(kept_colours(section, FIELDS, 16), expected, atol=1e-6)
    reads.clear()
    linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    assert not reads


def test_colours_are_left_out_where_nothing_asks_for_them(section):
    features_of(section, ModuleEncoder(MeanColour(), 16), CONFIG.replace(linear=False))
    assert np.isnan(kept_colours(section, FIELDS, 16)).all()


@pytest.mark.parametrize("known", [0, 15])
def test_colours_that_are_not_known_are_read(section, known):
    encoder = ModuleEncoder(MeanColour(), 16)
    features_of(section, encoder)
    expected = linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    _memory._kept.clear()
    with torch.inference_mode():  # as in prediction
        features_of(section, encoder, spots=ALL[:known]) if known else None
    found = linear_features(section, np.zeros((40, 2, 3)), FIELDS, CONFIG, looks=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- memory


@pytest.fixture(autouse=True)
def _empty_memory():
    _memory._kept.clear()


def test_features_are_computed_once(section, reads):
    encoder = ModuleEncoder(Corner(), 16)
    first = features_of(section, encoder)
    assert len(reads) == 1
    assert torch.equal(features_of(section, encoder), first)
    assert torch.equal(features_of(section, ModuleEncoder(encoder.module, 16)), first)
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
    assert not torch.allclose(features_of(section, red), features_of(section, green))
    larger = CONFIG.replace(patch_size=24)
    features_of(section, red, larger)
    features_of(section, red, spots=ALL[::-1])
    (other,) = open_sections(sections["S2"])
    assert not torch.equal(features_of(other, red), features_of(section, red))
    assert len(reads) == 4
    with torch.no_grad():
        mixing = ModuleEncoder(MeanColour(np.eye(3)), 16)
        before = features_of(section, mixing)
        mixing.module.mixing *= 2
    torch.testing.assert_close(features_of(section, mixing), 2 * before)


def test_memory_is_bounded(section, reads, monkeypatch):
    encoder = ModuleEncoder(MeanColour(), 16)
    one = features_of(section, encoder).nbytes
    _memory._kept.clear()
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", 2 * one)
    configs = [CONFIG.replace(patch_size=size, linear=False) for size in (16, 17, 18)]
    for config in configs:  # the third puts out the first
        features_of(section, encoder, config)
    assert sum(tensor.nbytes for kept in _memory._kept.values() for _, tensor in kept.values()) == 2 * one
    for config in configs[1:]:
        features_of(section, encoder, config)
    assert len(reads) == 3
    features_of(section, encoder, configs[0])
    assert len(reads) == 4


def test_what_is_too_large_is_not_kept(section, reads, monkeypatch):
    encoder = ModuleEncoder(MeanColour(), 16)
    expected = features_of(section, encoder)
    _memory._kept.clear()
    reads.clear()
    monkeypatch.setattr(settings, "feature_memory", expected.nbytes - 1)
    assert all(torch.equal(features_of(section, encoder), expected) for _ in range(2))
    assert len(reads) == 2
    assert not any(_memory._kept.values())


def test_nothing_is_kept_of_a_section_that_takes_too_much(sections, section, reads, monkeypatch):
    """Though its parts would fit: they would push each other out, and what is kept of others."""
    encoder = ModuleEncoder(MeanColour(), 16)
    (other,) = open_sections(sections["S2"])
    still = CONFIG.replace(linear=False)
    kept = features_of(other, encoder, still, ALL[:10])
    monkeypatch.setattr(settings, "feature_memory", features_of(section, encoder, still).nbytes - 1)
    _memory._kept[section].clear()
    for spots in (ALL[:20], ALL[20:]):
        features_of(section, encoder, still, spots)
    assert not _memory._kept[section]
    assert [tensor.nbytes for _, tensor in _memory._kept[other].values()] == [kept.nbytes]


def test_nothing_is_kept_of_a_section_that_is_used_once(section, reads):
    encoder = ModuleEncoder(MeanColour(), 16)
    expected = features_of(section, encoder)
    _memory._kept.clear()
    use_once([section])
    assert torch.equal(features_of(section, encoder), expected)
    assert section not in _memory._kept
    assert len(reads) == 2


def test_a_section_that_is_gone_is_forgotten(sections):
    encoder = ModuleEncoder(MeanColour(), 16)
    (passing,) = open_sections(sections["S1"])
    features_of(passing, encoder)
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
        for _ in range(2):
            found = list(spool)
            assert all(np.array_equal(spots, part) for (spots, _), part in zip(found, parts, strict=True))
            assert all(np.array_equal(seen, values[spots]) for spots, seen in found)


# --- embeddings


def test_embeddings_have_one_view_and_one_field_and_need_no_image(sections):
    adata = sections["S1"][::-1].copy()
    adata.obsm["X_emb"] = np.random.default_rng(0).normal(size=(40, 5))
    (section,) = open_sections(adata)
    section.opener = lambda: pytest.fail("the image is not needed")
    spots = np.array([7, 0, 39])
    found = features_of(section, "X_emb", spots=spots)
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
