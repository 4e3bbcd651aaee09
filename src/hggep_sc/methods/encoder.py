"""What a saved model notes of the encoder that it was fitted with, and what loading it again wants of the user."""

from typing import Any

from torch import nn

from ..config import Config
from ..features.encoders import SHUFFLENET, Eye, ObsmEncoder
from ..nn import ModuleEncoder
from ..storage.models import IncompleteError


def encoder_entry(encoder: Eye | None, groups: Any) -> dict[str, Any] | None:
    """Describe an encoder for the manifest; None for the released network's own."""
    if encoder is None:
        return None
    if isinstance(encoder, ObsmEncoder):
        return {"kind": "obsm", "key": encoder.slot, "groups": groups}
    kind = "module" if isinstance(encoder, ModuleEncoder) else SHUFFLENET
    return {"kind": kind, "groups": groups, "id": encoder.id}


def required_module(entry: dict[str, Any], module: nn.Module | None, config: Config) -> ModuleEncoder | None:
    """Return the user's module that the model was fitted with, checked; None for a model that has no such thing."""
    if entry["kind"] != "module":
        if module is not None:
            fitted = entry.get("key", SHUFFLENET)
            raise IncompleteError(f"encoder= is not wanted: it was fitted with encoder={fitted!r}")
        return None
    if module is None:
        raise IncompleteError("it was fitted with a module of yours: give it with load(..., encoder=module)")
    try:
        given = ModuleEncoder(module, config.patch_size)
    except Exception as error:  # whatever a module of the user's raises
        raise IncompleteError(f"encoder= does not fit the model: {error}") from error
    if given.id != entry["id"]:
        raise IncompleteError("encoder= is another module, or has other weights, than the one it was fitted with")
    return given
