"""What a saved model notes of the encoder that it was fitted with, and what loading it again wants of the user."""

from pathlib import Path
from typing import Any

from torch import nn

from ..config import Config
from ..encoders.named import calibrated_as, calibration
from ..encoders.registry import SHUFFLENET, info, load
from ..encoders.side_by_side import Known
from ..errors import HggepError
from ..features.encoders import Eye, ObsmEncoder
from ..nn import Encoder, ModuleEncoder
from ..storage.models import IncompleteError


def encoder_entry(encoder: Eye | None, groups: Any, patch_size: int) -> dict[str, Any] | None:
    """Describe an encoder for the manifest; None for the released network's own.

    Of one whose weights are not stored, what it makes of a fixed patch is noted.
    """
    if encoder is None:
        return None
    if isinstance(encoder, ObsmEncoder):
        return {"kind": "obsm", "key": encoder.slot, "groups": groups}
    found = [] if encoder.stored else _calibrations(encoder, patch_size)
    noted = {"calibration": found[0] if len(found) == 1 else found} if found else {}
    if isinstance(encoder, Known):
        known = {"name": encoder.info.name, "random": encoder.random}
        return {"kind": "named", **known, "groups": groups, "id": encoder.id, **noted}
    kind = "module" if isinstance(encoder, ModuleEncoder) else SHUFFLENET
    return {"kind": kind, "groups": groups, "id": encoder.id, **noted}


def required_encoder(
    entry: dict[str, Any], given: nn.Module | str | Path | None, config: Config
) -> Known | ModuleEncoder | None:
    """Return the encoder that a model was fitted with and does not hold, checked; None for a model that lacks none.

    Parameters
    ----------
    entry
        What `encoder_entry` noted.
    given
        The user's module or encoder; of one known by name a file or folder of its weights, or None for its own.
    config
        Settings that the model shares with the network.
    """
    kind = entry["kind"]
    if kind not in ("module", "named"):
        if given is not None:
            fitted = entry.get("key", SHUFFLENET)
            raise IncompleteError(f"encoder= is not wanted: it was fitted with encoder={fitted!r}")
        return None
    found = _named(entry, given) if kind == "named" else _module(given, config)
    if found.id != entry["id"] and kind == "named":
        raise IncompleteError(
            f"encoder {entry['name']!r} has other weights here than those that it was fitted with: give the file or "
            "folder of the same ones as encoder="
        )
    if found.id != entry["id"]:
        raise IncompleteError("encoder= is another module, or has other weights, than the one it was fitted with")
    noted = entry.get("calibration") or []
    of_members = noted if noted and isinstance(noted[0], list) else [noted] if noted else []
    for told, seen in zip(of_members, _calibrations(found, config.patch_size) if noted else [], strict=True):
        if calibrated_as(told, seen):
            continue
        raise IncompleteError(
            "encoder= has the same weights as the one it was fitted with, and makes something else of them (of a fixed "
            f"patch {seen[0]:.4g}, {seen[1]:.4g}, ... in place of {told[0]:.4g}, {told[1]:.4g}, ...): use the "
            "settings, and the version of its library, that it was fitted with"
        )
    return found


def _calibrations(encoder: Encoder, patch_size: int) -> list[list[float]]:
    return [calibration(member, patch_size) for member in encoder.members]


def _named(entry: dict[str, Any], given: nn.Module | str | Path | None) -> Known:
    name = entry["name"]
    if isinstance(given, Known) and given.info.name == name:
        return given
    if isinstance(given, nn.Module):
        raise IncompleteError(f"encoder= is another than it was fitted with: hggep_sc.encoders.load({name!r})")
    try:
        info(name)
    except ValueError as error:
        raise IncompleteError(f"{error}; it was fitted with it: register it first") from error
    try:
        own = None if entry.get("random") else "pretrained"
        return load(name, own if given is None else given)
    except (HggepError, FileNotFoundError) as error:
        raise IncompleteError(
            f"it was fitted with encoder={name!r}: {error} (encoder= takes the file or folder of its weights)"
        ) from error


def _module(given: nn.Module | str | Path | None, config: Config) -> ModuleEncoder:
    if given is None:
        raise IncompleteError("it was fitted with a module of yours: give it with load(..., encoder=module)")
    if not isinstance(given, nn.Module) or isinstance(given, Encoder):
        raise IncompleteError(f"encoder= must be the module of yours that it was fitted with, not {given!r:.80}")
    try:
        return ModuleEncoder(given, config.patch_size)
    except Exception as error:  # whatever a module of the user's raises
        raise IncompleteError(f"encoder= does not fit the model: {error}") from error
