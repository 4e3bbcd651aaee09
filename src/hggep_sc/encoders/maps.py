"""Networks of other libraries as maps: what each makes of a slide around every place."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Sight


class TokenMaps(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) as two maps: its class token, and its patch tokens.

    Averaged over a patch they are the class token and the mean of the patch tokens. Larger tissue is seen in tiles of
    the size that the transformer knows, which overlap by half: of each the patch tokens of the middle are taken, and
    the class token stands for all of it.

    Parameters
    ----------
    transformer
        The network.
    tokens
        Takes it and pixels (N, 3, px, px), and gives the last layer's tokens (N, prefix + n, D).
    token_px
        Side of what a patch token stands for.
    prefix
        Tokens before the patch tokens, the first of which is the class token.
    px
        Side of the pixels that it is given.
    """

    def __init__(
        self,
        transformer: nn.Module,
        tokens: Callable[[Any, Tensor], Tensor],
        *,
        token_px: int,
        prefix: int,
        px: int,
    ) -> None:
        super().__init__()
        self.transformer, self._tokens, self._prefix = transformer, tokens, prefix
        self.sight = Sight.of_size(px, token_px)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, S, S) normalised pixels to two maps (N, D, S / token_px, S / token_px)."""
        found = self._tokens(self.transformer, pixels)
        side = pixels.shape[-1] // self.sight.stride
        patches = found[:, self._prefix :].transpose(1, 2).unflatten(2, (side, side))
        return [found[:, 0, :, None, None].expand_as(patches), patches]


class StageMaps(nn.Module):
    """A network as the maps of its stages.

    Parameters
    ----------
    network
        The network.
    stages
        Takes it and pixels (N, 3, S, S), and gives maps (N, C, S / stride, S / stride).
    sight
        How it sees a slide.
    folded
        Takes the network, and gives a module that takes pixels and gives the same maps in eval mode, faster; None where
        nothing does.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Callable[[Any, Tensor], list[Tensor]],
        sight: Sight,
        folded: Callable[[Any], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._stages, self._folded = network, stages, folded
        self.sight = sight

    def for_inference(self) -> "StageMaps":
        """Return what gives the same maps in eval mode, faster where it is known how."""
        if self._folded is None:
            return self
        return StageMaps(self._folded(self.network), lambda network, pixels: network(pixels), self.sight)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, S, S) normalised pixels to the maps of the stages."""
        return self._stages(self.network, pixels)


def tokens_of_timm(transformer: Any, pixels: Tensor) -> Tensor:
    """Return the tokens of a transformer of timm's."""
    return transformer.forward_features(pixels)


def tokens_of_transformers(transformer: Any, pixels: Tensor) -> Tensor:
    """Return the tokens of a transformer of the library of this name."""
    return transformer(pixel_values=pixels).last_hidden_state


def last_map_of_swin(network: Any, pixels: Tensor) -> list[Tensor]:
    """Return the last map of a Swin transformer of timm's, whose channels come last."""
    return [network.forward_features(pixels).permute(0, 3, 1, 2)]


def stages_of_timm(network: Any, pixels: Tensor) -> list[Tensor]:
    """Return the maps of a network that timm made with `features_only`."""
    return list(network(pixels))


class ConvStem(nn.Module):
    """The stem of CTransPath (Wang et al. 2022): convolutions in place of the Swin transformer's patch embedding."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, norm_layer: type, **_: object):
        super().__init__()
        widths = [in_chans, embed_dim // 8, embed_dim // 4]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))
