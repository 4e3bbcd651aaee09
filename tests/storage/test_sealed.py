import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from hggep_sc.storage.sealed import sealed, unsealed

TENSORS = {
    "a": torch.arange(6.0).reshape(3, 2).t(),
    "scalar": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "half": torch.randn(4, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "none": torch.empty(0, 5),
}
NOTE = {"name": "ä", "values": [1, 0.1, float("inf"), None, True], "nested": [[0, {"x": []}]]}


def test_what_is_sealed_comes_back():
    tensors, note = unsealed(sealed(TENSORS, NOTE))
    assert note == NOTE
    assert tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert tensors[name].dtype == values.dtype
        assert torch.equal(tensors[name], values)
    assert unsealed(sealed({})) == ({}, None)


def test_other_tools_read_it():
    """It is a safetensors file."""
    assert load(sealed(TENSORS, NOTE)).keys() == TENSORS.keys()


@pytest.mark.parametrize("place", np.linspace(8, len(sealed(TENSORS, NOTE)) - 1, 40).astype(int))
def test_a_bit_that_flips_is_noticed(place):
    """In the header, in the note and in the tensors."""
    content = bytearray(sealed(TENSORS, NOTE))
    content[place] ^= 1
    with pytest.raises(ValueError, match=r"cut short, or was not written by this package|its checksum differs"):
        unsealed(bytes(content))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 20, 300, -1])
def test_a_file_that_is_cut_is_noticed(length):
    with pytest.raises(ValueError, match="it is cut short, or was not written by this package"):
        unsealed(sealed(TENSORS, NOTE)[:length])


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"{}",
        bytes(1000),
        b"\xff" * 1000,
        save(TENSORS_OF_OTHERS := {"a": torch.zeros(2)}),
        save(TENSORS_OF_OTHERS, {"note": "null"}),
        save(TENSORS_OF_OTHERS, {"note": "{", "sha256": ""}),
        save(TENSORS_OF_OTHERS, {"note": 100_000 * "[", "sha256": ""}),
    ],
    ids=["zip", "json", "zeros", "ones", "no note", "no checksum", "no JSON", "deep"],
)
def test_files_of_others_are_noticed(content):
    with pytest.raises(ValueError, match="it is cut short, or was not written by this package"):
        unsealed(content)


def test_an_entry_that_is_taken_away_or_exchanged_is_noticed():
    content = sealed(TENSORS, NOTE)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    for tensors in ({"a": TENSORS["a"].contiguous()}, {**load(content), "scalar": torch.tensor(4)}):
        with pytest.raises(ValueError, match="its checksum differs"):
            unsealed(save(tensors, header))
