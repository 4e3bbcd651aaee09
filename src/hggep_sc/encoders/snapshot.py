"""Where an encoder's weights are on this machine: a file or folder of the user's, or a snapshot from a hub."""

import logging
from pathlib import Path

from ..errors import ModelError, WeightsError
from ..runtime.validators import path_of
from ..storage.paths import require_there
from .build import efficientnet_lite_weights, library, weights_file
from .card import EncoderInfo
from .weights import PRETRAINED

logger = logging.getLogger(__name__)

LITE0, LITE2 = "efficientnet_lite0", "efficientnet_lite2"
BY_PIP = {LITE0: 0, LITE2: 2}  # sizes of those whose weights are packages


def located(info: EncoderInfo, weights: str | Path | None) -> Path | None:
    """Return where the weights of an encoder are, downloaded if need be; None for random ones.

    Parameters
    ----------
    info
        The encoder.
    weights
        "pretrained": its own; a file or a folder on this machine; None: random.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ModelError
        If the folder holds no weights.
    WeightsError
        If its own are not on this machine and cannot be had.
    """
    if weights is None:
        return None
    if weights not in PRETRAINED:
        path = path_of("weights", weights)
        require_there(path, "weights")
        if info.hub is not None:
            try:
                weights_file(path)
            except ModelError as error:
                raise ModelError(f"{error}. {_remedy(info)}") from None
        return path
    if info.name in BY_PIP:
        return efficientnet_lite_weights(BY_PIP[info.name])
    if info.hub is None:
        return None  # its own `build` knows
    return _of_hub(info, info.hub)


def _remedy(info: EncoderInfo) -> str:
    return (
        f"`hf download {info.hub}` gets them on a machine that reaches the hub; then give the folder as weights=. "
        f"Their licence is {info.licence}" + ("" if info.commercial else ", not for commercial use")
    )


def _of_hub(info: EncoderInfo, hub: str) -> Path:
    library("huggingface_hub", info.extra or "timm")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    remedy = _remedy(info)
    try:
        folder = Path(snapshot_download(hub, allow_patterns=["config.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub, allow_patterns=["config.json", "*.bin"]))
    except GatedRepoError as error:
        raise WeightsError(
            f"the weights of {info.title} are given out on request: ask for them at https://huggingface.co/{hub}, then "
            f"`hf auth login`. {remedy} ({_first_line(error)})"
        ) from error
    except (OSError, ValueError) as error:  # the hub's errors of network, server and missing files
        raise WeightsError(
            f"the weights of {info.title} cannot be had from {hub}: {_first_line(error)}. {remedy}"
        ) from error
    logger.info("weights of %s: %s", info.title, folder)
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
