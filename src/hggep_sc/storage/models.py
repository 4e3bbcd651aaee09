"""Models on disk: a folder of safetensors and one JSON manifest, no pickle."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .._version import __version__
from ..errors import ModelError
from ..runtime.device import is_first_process
from ..runtime.messages import listed
from ..runtime.validators import flag, path_of
from .files import read_regular
from .hub import local_folder, real_file
from .replace import is_under_way, replacing
from .sealed import on_host

FORMAT = 3  # of the folder, and of how features are defined: 2 saw each spot's patches by themselves
MANIFEST = "model.json"
LARGEST = 2**26  # bytes of a manifest, of which 60,000 genes take two in a hundred
CHECKSUM = "checksum"  # of the manifest, in itself
LOCK = "lock"  # file in the folder while it is written
CARD = "README.md"
OURS = "library_name: hggep-sc"  # in a card: one without it is somebody's own, and stays


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
    card: str,
    overwrite: bool,
) -> None:
    """Write a model to a folder: tensors as safetensors, everything else as JSON.

    The manifest is replaced last and in one step, so that an interruption leaves the earlier model whole. Of several
    processes that save at once one after another writes; of those of a fit by several devices, the first alone.

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
    card
        What tells a reader of it, in Markdown, written to `README.md`; one that somebody wrote themselves stays.
    overwrite
        Replace the model in the folder.

    Raises
    ------
    FileExistsError
        If something is there already, unless `overwrite`; always, if it is not a model, or holds other files too.
    OSError
        If writing fails, of a full disk for instance; an earlier model is whole.
    """
    if not is_first_process():
        return
    from filelock import FileLock

    path = path_of("path", path)
    flag("overwrite", overwrite)
    if path.exists():
        _require_ours(path)
        if (path / MANIFEST).exists() and not overwrite:
            raise FileExistsError(f"{path} holds a model already: pass overwrite=True to replace it")
    blobs = {_file(stem, model_id): save_tensors(on_host(entries)) for stem, entries in tensors.items()}
    head = {"format": FORMAT, "hggep_sc": __version__, "torch": torch.__version__, "method": method, "id": model_id}
    files = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    sizes = {name: len(blob) for name, blob in blobs.items()}
    entries = json.loads(json.dumps({**head, **content, "files": files, "sizes": sizes}))  # as they are read
    text = json.dumps({**entries, CHECKSUM: _checksum(entries)}, indent=1).encode()
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / LOCK):
            try:
                for name, blob in blobs.items():
                    _write(path / name, blob)
                _write(path / MANIFEST, text)
                if not (path / CARD).exists() or _is_ours(path / CARD):
                    _write(path / CARD, card.encode())
            finally:
                _tidy(path)
    except OSError as error:
        if made:
            with suppress(OSError):
                path.rmdir()
        if str(path) in str(error):
            raise
        raise OSError(f"{path} could not be written: {error}") from error


def load_model(
    path: str | Path, *, method: str, rebuild: Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], Model]
) -> Model:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path
        The folder, or a repository of the hub's, `hf://owner/name@revision`.
    method
        What the model has to be.
    rebuild
        Makes the model from the manifest and the tensors of each file; what it raises is laid to the folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ModelError
        If the folder is not a model, is one of another method, is damaged, or was written by another version.
    ValueError
        If the model needs something with it that was not given, or does not fit it.
    """
    path = folder_of(path)
    while True:
        text = _manifest(path)
        content = _parsed(path, text)
        _require_readable(path, content, method)
        try:
            _require_sound(content)
            blobs = _blobs(path, content)
            model = rebuild(content, {name.split("-")[0]: load_tensors(blob) for name, blob in blobs.items()})
            if model.id != content["id"]:
                raise ValueError(f"genes and weights are not those that were saved together as {content['id']}")
            return model
        except IncompleteError as error:
            raise ValueError(f"the model in {path}: {error}") from error
        except Exception as error:  # whatever a damaged folder makes the libraries raise
            if isinstance(error, FileNotFoundError) and _manifest(path) != text:
                continue  # another process has put another model in its place
            raise ModelError(f"the model in {path} is damaged: {_reason(error)}") from error


def identity(text: str, *tensors: Mapping[str, Tensor]) -> str:
    """Return the id of a model: a hash of its genes, what else tells it from others, and its tensors by name."""
    digest = hashlib.sha256(text.encode())
    for entries in tensors:
        for name, tensor in sorted(on_host(entries).items()):
            raw = tensor.flatten().view(torch.uint8)  # also of types that NumPy lacks
            digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()[:12]


def folder_of(path: str | Path) -> Path:
    """Return the folder of a model, downloaded where it is on the hub.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = path_of("path", local_folder(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}")
    return path


def method_in(path: Path) -> str:
    """Return the name of the method that fitted the model in a folder.

    Raises
    ------
    ModelError
        If it holds none.
    """
    return str(_parsed(path, _manifest(path)).get("method", "hggep"))


def _manifest(path: Path) -> bytes:
    file = real_file(path / MANIFEST)
    if not file.is_file():
        raise ModelError(f"{path} is not an hggep_sc model: it has no {MANIFEST}")
    if (size := file.stat().st_size) > LARGEST:
        raise ModelError(f"{file} is damaged or not of an hggep_sc model: it has {size / 2**20:.0f} MiB")
    return read_regular(file)


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it names no format")
        return content
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path / MANIFEST} is damaged or not of an hggep_sc model: {error}") from error


def _require_readable(path: Path, content: Mapping[str, Any], method: str) -> None:
    """Refuse a folder of another format or method, and a manifest that was changed since."""
    if (written_format := content["format"]) != FORMAT:
        older = isinstance(written_format, int) and written_format < FORMAT
        raise ModelError(
            f"{path} has format {written_format} (written by hggep_sc {content.get('hggep_sc')}); this is "
            f"hggep_sc {__version__}, which reads format {FORMAT}: "
            + ("fit the model again" if older else "update the package")
        )
    found = content.get("method", "hggep")  # the only one there was before the manifest named it
    if found != method:
        raise ModelError(
            f"{path} holds a model of method {found!r}, not {method!r}: load it by hggep_sc.methods.load, which takes "
            "those of every method that is known"
        )
    # earlier versions wrote none
    if CHECKSUM in content and _checksum(content) != content[CHECKSUM]:
        raise ModelError(
            f"{path / MANIFEST} is damaged, or was changed by hand (its checksum differs): restore the file, or save "
            "the model again from where it is whole"
        )


def _checksum(content: Mapping[str, Any]) -> str:
    """Hash of all entries of a manifest but its own."""
    others = {name: value for name, value in content.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _require_sound(content: Mapping[str, Any]) -> None:
    """Refuse entries of another kind than `save_model` is given; those that are missing are missed where they serve."""
    for name, (is_sound, wanted) in _ENTRIES.items():
        if name in content and not is_sound(content[name]):
            raise ValueError(f"{MANIFEST}: {name!r} must be {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda value: isinstance(value, str), "a name"),
    "config": (lambda value: isinstance(value, dict), "settings by name"),
    "encoder": (lambda value: value is None or isinstance(value, dict), "entries by name, or null"),
    "mpp": (lambda value: value is None or (_is_number(value) and 0 < value < math.inf), "um per px, or null"),
    "seed": (lambda value: value is None or (isinstance(value, int) and _is_number(value)), "a whole number, or null"),
    "genes": (lambda value: _are_names(value) and 0 < len(value) == len(set(value)), "names, each once"),
    "training_sections": (_are_names, "names"),
    "library_genes": (lambda value: value is None or (_is_number(value) and value >= 0), "a number"),
    "history": (
        lambda value: (
            isinstance(value, list)
            and all(isinstance(row, dict) and all(x is None or _is_number(x) for x in row.values()) for row in value)
        ),
        "rows of numbers",
    ),
    "files": (
        lambda value: (
            isinstance(value, dict) and all(_is_blob(name) and isinstance(value[name], str) for name in value)
        ),
        f"checksums by the names of files in the folder, such as {'network-0123456789ab.safetensors'!r}",
    ),
    "sizes": (
        lambda value: isinstance(value, dict) and all(isinstance(size, int) for size in value.values()),
        "numbers of bytes by file",
    ),
}


def _blobs(path: Path, content: Mapping[str, Any]) -> dict[str, bytes]:
    """Content of the files that the manifest names, checked."""
    files, sizes = content["files"], content.get("sizes")
    if sizes is not None and set(sizes) != set(files):
        raise ValueError(f"{MANIFEST}: 'files' and 'sizes' name different files")
    blobs = {}
    for name, expected in files.items():
        blobs[name] = read_regular(real_file(path / name), None if sizes is None else sizes[name])
        if hashlib.sha256(blobs[name]).hexdigest() != expected:
            raise ValueError(f"{name} is not the file that was saved (its checksum differs)")
    return blobs


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def stored_scale(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the scale of training beyond um per px; older ones say nothing."""
    spacing = content.get("spacing_um")
    return {"reduction": content.get("reduction", 1.0), "spacing_um": None if spacing is None else tuple(spacing)}


def _file(stem: str, model_id: str) -> str:
    return f"{stem}-{model_id}.safetensors"


def _is_blob(name: str) -> bool:
    return bool(re.fullmatch(r"(network|training|arrays|linear|confidence)-[0-9a-f]{12}\.safetensors", name))


def _is_ours(card: Path) -> bool:
    """Whether a card is one that was written here."""
    return card.is_file() and OURS in card.read_text(errors="replace")


def _require_ours(path: Path) -> None:
    """Refuse a folder that holds anything but files of a model, whole or of an interrupted save."""
    if path.is_dir():
        known = (MANIFEST, LOCK, CARD) if (path / MANIFEST).exists() or _is_ours(path / CARD) else (MANIFEST, LOCK)
        others = [
            entry.name
            for entry in path.iterdir()
            if not (entry.name in known or _is_blob(entry.name) or is_under_way(entry.name))
        ]
        if not others:
            return
        if (path / MANIFEST).exists():
            raise FileExistsError(
                f"{path} holds a model, and {listed(others)}, which is not of it: move that away, or choose another "
                "folder"
            )
    raise FileExistsError(f"{path} exists and is not an hggep_sc model: choose another folder")


def _tidy(path: Path) -> None:
    """Remove files of models that the manifest does not name: of the one that was replaced, or of interrupted saves."""
    with suppress(OSError):
        manifest = path / MANIFEST
        kept = set(json.loads(manifest.read_text())["files"]) if manifest.exists() else set()
        for entry in path.iterdir():
            if entry.name not in kept and (_is_blob(entry.name) or entry.name == LOCK):
                entry.unlink()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)
