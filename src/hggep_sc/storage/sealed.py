"""Tensors and a JSON note in the bytes of one safetensors file, with a checksum: read as they were written, or not."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

NOTE, CHECKSUM = "note", "sha256"  # entries of the header


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the host, each in one piece, as they are written and hashed."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def sealed(tensors: Mapping[str, Tensor], note: Any = None) -> bytes:
    """Return the content of a file with tensors and a note, which is anything that JSON holds."""
    flat = on_host(tensors)
    text = json.dumps(note)
    return save(flat, {NOTE: text, CHECKSUM: _checksum(flat, text)})


def unsealed(content: bytes) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the note of a file that `sealed` made; nothing of it is run.

    Raises
    ------
    ValueError
        If it is anything else, or has changed.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text, checksum = header[NOTE], header[CHECKSUM]
        note = json.loads(text)
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError("it is cut short, or was not written by this package") from error
    if checksum != _checksum(tensors, text):
        raise ValueError("its checksum differs")
    return tensors, note


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
