"""Models on disk: a folder of safetensors and one JSON manifest, no pickle."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ._replace import replacing
from ._version import __version__
from .device import is_first_process

FORMAT = 2  # of the folder
MANIFEST = "model.json"
CLASSES = {  # that load a folder, by the manifest's method
    "hggep": "hggep_sc.HGGEP",
    "gene_mean": "hggep_sc.baselines.GeneMean",
    "nearest_patches": "hggep_sc.baselines.NearestPatches",
    "ridge": "hggep_sc.baselines.Ridge",
    "low_rank_ridge": "hggep_sc.baselines.LowRankRidge",
}


class IncompleteError(ValueError):
    """The folder is sound, but the caller has to give something with it."""


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Model = TypeVar("Model", bound=_Identified)
Tensors = Mapping[str, Mapping[str, Tensor]]


def save_model(
    path: str | Path,
    *,
    method: str,
    model_id: str,
    content: Mapping[str, Any],
    tensors: Tensors,
    overwrite: bool,
) -> None:
    """Write a model to a folder: tensors as safetensors, everything else as JSON.

    The manifest is replaced last and in one step, so that an interruption leaves the earlier model whole. Of the
    processes of a fit by several devices, the first alone writes.

    Parameters
    ----------
    path
        Folder to write; made if it does not exist.
    method, model_id
        What the model is, and its id.
    content
        The manifest's own entries, ready for JSON.
    tensors
        Tensors by name, one mapping for each file ("network", "training", "linear", "confidence", "arrays").
    overwrite
        Replace the model in the folder.

    Raises
    ------
    FileExistsError
        If something is there already, unless `overwrite`; always, if it is not a model.
    """
    if not is_first_process():
        return
    path = Path(path)
    manifest = path / MANIFEST
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not _is_ours(path)):
            raise FileExistsError(f"{path} exists and is not an hggep_sc model: choose another folder")
        if manifest.exists() and not overwrite:
            raise FileExistsError(f"{path} holds a model already: pass overwrite=True to replace it")
    blobs = {_file(stem, model_id): save_tensors(dict(entries)) for stem, entries in tensors.items()}
    head = {"format": FORMAT, "hggep_sc": __version__, "torch": torch.__version__, "method": method, "id": model_id}
    files = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    text = json.dumps({**head, **content, "files": files}, indent=1).encode()
    path.mkdir(parents=True, exist_ok=True)
    for name, blob in blobs.items():
        _write(path / name, blob)
    _write(manifest, text)
    for leftover in path.iterdir():  # of the model that was replaced, or of an interrupted save
        if leftover.name not in blobs and leftover.name != MANIFEST:
            leftover.unlink()


def load_model(
    path: str | Path, *, method: str, rebuild: Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], Model]
) -> Model:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path
        The folder.
    method
        What the model has to be.
    rebuild
        Makes the model from the manifest and the tensors of each file; what it raises is laid to the folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is not a model, is one of another method, is damaged, or was written by a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}")
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is not an hggep_sc model: it has no {MANIFEST}")
    try:
        content = json.loads((path / MANIFEST).read_text())
        written_format = content["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged or not of an hggep_sc model: {error}") from error
    if written_format != FORMAT:
        older = isinstance(written_format, int) and written_format < FORMAT
        raise ValueError(
            f"{path} has format {written_format} (written by hggep_sc {content.get('hggep_sc')}); this is "
            f"hggep_sc {__version__}, which reads format {FORMAT}: "
            + ("fit the model again" if older else "update the package")
        )
    found = content.get("method", "hggep")  # the only one there was before the manifest named it
    if found != method:
        known = f"load it by {CLASSES[found]}.load" if found in CLASSES else "this version does not know it"
        raise ValueError(f"{path} holds a model of method {found!r}, not {method!r}: {known}")
    try:
        blobs = {name: (path / name).read_bytes() for name in content["files"]}
        for name, blob in blobs.items():
            if hashlib.sha256(blob).hexdigest() != content["files"][name]:
                raise ValueError(f"{name} is not the file that was saved (its checksum differs)")
        model = rebuild(content, {name.split("-")[0]: load_tensors(blob) for name, blob in blobs.items()})
        if model.id != content["id"]:
            raise ValueError(f"genes and weights are not those that were saved together as {content['id']}")
        return model
    except IncompleteError as error:
        raise ValueError(f"the model in {path}: {error}") from error
    except (KeyError, TypeError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"the model in {path} is damaged: {error}") from error


def stored_scale(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the scale of training beyond um per px; older ones say nothing."""
    spacing = content.get("spacing_um")
    return {"reduction": content.get("reduction", 1.0), "spacing_um": None if spacing is None else tuple(spacing)}


def _file(stem: str, model_id: str) -> str:
    return f"{stem}-{model_id}.safetensors"


def _is_ours(path: Path) -> bool:
    """Whether a folder holds nothing but files of a model, whole or of an interrupted save."""
    blob = _file("(network|training|arrays|linear|confidence)", "[0-9a-f]{12}").replace(".", r"\.")
    ours = re.compile(rf"({re.escape(MANIFEST)}|{blob})(\.part)?")
    return all(ours.fullmatch(entry.name) for entry in path.iterdir())


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)
