import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from threading import Barrier, Event, current_thread
from threading import enumerate as enumerate_threads
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hggep_sc.features.describe as describe_module
from helpers import WAIT, Corner, MeanColour
from hggep_sc.features import slide
from hggep_sc.features.describe import DIHEDRAL, PLAIN, describe_parts, of_patches, of_views, turned
from hggep_sc.features.patches import read_patches
from hggep_sc.features.store import _memory, describe_section
from hggep_sc.nn import ModuleEncoder
from hggep_sc.training.augmentation import dihedral

CPU = torch.device("cpu")
FIELDS = (16.0, 32.0)


def pixels_of(adata):
    return np.asarray(Image.open(adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]).convert("RGB"))


def seen_by(section, encoder, **settings):
    return torch.from_numpy(describe_section(section, encoder, FIELDS, 16, device=CPU, **settings).encoded)


def threads_at_work():
    return [thread for thread in enumerate_threads() if thread.name.startswith("hggep_sc")]


@pytest.fixture(autouse=True)
def _empty_memory():
    _memory._kept.clear()


# --- patches, in all views


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
        encode = of_views(of_patches(encoder), DIHEDRAL)
        ((found,),) = describe_parts(
            opened_image, [section.xy[inside]], (16.0,), 16, [encode], batch_size=batch_size, device=CPU
        )
    assert found.shape == (len(inside), 8, 1, 12)
    np.testing.assert_array_equal(found[:, :, 0].numpy(), expected)


def test_views_are_the_eight_symmetries_and_start_with_none():
    assert len(set(DIHEDRAL)) == 8
    assert DIHEDRAL[0] == PLAIN[0] == (0, False)
    assert [turns for turns, flip in DIHEDRAL if not flip] == [0, 1, 2, 3]


def test_views_turn_after_mirroring():
    patches = torch.randint(0, 256, (5, 2, 3, 6, 6), dtype=torch.uint8)
    for (turns, flip), found in zip(DIHEDRAL, turned(patches, DIHEDRAL), strict=True):
        expected = dihedral(patches, torch.full((5,), turns), torch.full((5,), flip))
        assert torch.equal(found, expected)
        assert found.is_contiguous()


# --- reading ahead


def read_by(image, xy, batch_size):
    """The patches that `describe_parts` shows a function, and how many at once."""
    sizes = []

    def seen(patches):
        sizes.append(len(patches))
        return patches

    ((patches,),) = describe_parts(image, [xy], FIELDS, 16, [seen], batch_size=batch_size, device=CPU)
    return patches, sizes


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 64])
def test_what_is_described_is_what_is_there(section, batch_size, threads):
    with section.open_image() as image:
        patches, sizes = read_by(image, section.xy, batch_size)
        np.testing.assert_array_equal(patches.numpy(), read_patches(image, section.xy, FIELDS, 16))
    assert max(sizes) == min(-(-batch_size // threads), len(section.xy))  # the threads share a batch
    assert sum(sizes) == len(section.xy)


def test_each_thread_computes_alone_and_the_callers_keeps_its_number(section, threads):
    inside, together, calls = set(), Barrier(threads), count()

    def noted(patches):
        inside.add((current_thread().name, torch.get_num_threads()))
        if next(calls) < threads:  # none goes on before every thread has begun
            together.wait(WAIT)
        return patches

    with section.open_image() as image:
        list(describe_parts(image, [section.xy], FIELDS, 16, [noted], batch_size=threads, device=CPU))
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
    seen_by(section, ModuleEncoder(Noting(), 16), batch_size=4)
    assert where == {"MainThread"}


def test_the_next_batches_are_read_while_one_is_worked_on(section, monkeypatch):
    """Of the next part too, as far as there are threads."""
    started = [Event() for _ in range(6)]

    def noted(image, xy, *args):
        started[next(spot for spot in range(6) if np.array_equal(xy[0], section.xy[spot]))].set()
        return read_patches(image, xy, *args)

    monkeypatch.setattr(describe_module, "read_patches", noted)
    parts = [section.xy[:2], section.xy[2:4], section.xy[4:6]]
    with section.open_image() as image:
        described = describe_parts(
            image, parts, FIELDS, 16, [torch.clone], batch_size=1, device=CPU, concurrently=False
        )
        with closing(described):
            next(described)
            assert threads_at_work()
            assert started[2].wait(WAIT)
            assert not started[4].is_set()  # memory is bounded
            (second,) = next(described)
        np.testing.assert_array_equal(second.numpy(), read_patches(image, parts[1], FIELDS, 16))
    assert not threads_at_work()


def test_an_error_in_reading_is_raised_and_no_thread_is_left(section, monkeypatch):
    def broken(image, xy, *args):
        if np.array_equal(xy[0], section.xy[20]):
            raise ValueError("the pixels cannot be read")
        return read_patches(image, xy, *args)

    monkeypatch.setattr(describe_module, "read_patches", broken)
    with pytest.raises(ValueError, match="the pixels cannot be read"):
        seen_by(section, ModuleEncoder(MeanColour(), 16), batch_size=10)
    assert not threads_at_work()
    assert not _memory._kept.get(section)


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
    monkeypatch.setattr(describe_module, "read_patches", slow)
    with pytest.raises(RuntimeError, match="encoder"):
        seen_by(section, ModuleEncoder(Broken(), 16), batch_size=10)
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
    """From there on in the whole section, whose spots are described in two parts."""
    monkeypatch.setattr(describe_module, "CPU_PATCHES", 1000)  # all at once, as on a GPU
    monkeypatch.setattr(slide, "PART_SPOTS", 20)
    crowded = Crowded(room)
    encoder = ModuleEncoder(crowded, 16)
    undisturbed = seen_by(section, ModuleEncoder(MeanColour(), 16))
    crowded.sizes.clear()  # of when it was tried
    with caplog.at_level(logging.WARNING):
        found = seen_by(section, encoder, batch_size=20)
    torch.testing.assert_close(found, undisturbed)
    *too_many, most = 20, *halves
    assert [size for size in crowded.sizes if size > room] == too_many
    assert max(size for size in crowded.sizes if size <= room) == most
    assert sum(size for size in crowded.sizes if size <= room) == 40
    assert len(caplog.messages) == len(halves)
    for message, half in zip(caplog.messages, halves, strict=True):
        assert f"batch_size={half} in tl.predict" in message


def test_out_of_memory_with_a_spot_alone(section):
    crowded = Crowded(1)
    encoder = ModuleEncoder(crowded, 16)
    crowded.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        seen_by(section, encoder)
    assert not threads_at_work()
