"""From a patch to features: GEM, ShuffleNetV2 with CBAM at its stages, or a network of the user's own."""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cbam import CBAM
from .gem import GEM
from .shufflenet import CHANNELS, LAST, ShuffleNetV2

STAGES = dict(zip(("stage2", "stage3", "stage4", "conv5"), (*CHANNELS, LAST), strict=True))  # channels by name


def state_hash(module: nn.Module, settings: str = "", *, classes: bool = True) -> str:
    """Hash of a module's state, of what settings it does not tell, and of the classes that the module is made of.

    Without `classes` another version of a library, which names its parts in another way, does not change it.
    """
    made_of = [(name, type(part).__name__) for name, part in module.named_modules()] if classes else []
    digest = hashlib.sha256(repr((made_of, settings)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Sight:
    """How an encoder that gives maps sees a slide; all px are of the scale at which it is read.

    Attributes
    ----------
    stride
        Side of the cells of its deepest map, and of those of every map a whole number.
    surroundings
        Px around a tile or a window that it is given beside them.
    tile
        Px of a tile, at most; of all tiles, where `native` is given.
    native
        Side of the only squares that it takes, as a vision transformer does; None for any.
    """

    stride: int = 16
    surroundings: int = 32
    # larger maps do not fit a CPU's cache, of smaller ones much is surroundings
    tile: int = 640
    native: int | None = None

    @classmethod
    def of_size(cls, px: int, stride: int) -> "Sight":
        """Return that of squares of one size, of which the middle, about half a side, is taken as a tile."""
        surroundings = px // stride // 4 * stride
        return cls(stride, surroundings, px - 2 * surroundings, px)


class Encoder(nn.Module):
    """Patches to features.

    Attributes
    ----------
    groups
        How many features each of its stages has; they follow one another.
    sight
        How it sees a slide through its `maps`; None for one that sees each patch by itself.
    stored
        Whether a model's folder holds its weights.
    """

    groups: tuple[int, ...]
    sight: Sight | None = None
    stored: bool = True

    @property
    def members(self) -> "tuple[Encoder, ...]":
        """Encoders whose features stand side by side; of most it is the encoder itself."""
        return (self,)

    @property
    def id(self) -> str:
        """Hash of the weights and of what is done with them."""
        return state_hash(self, self.extra_repr())

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3, S, S), 0..255, to (N, sum(groups))."""
        raise NotImplementedError

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W), 0..255, to maps (N, C, H / stride, W / stride), whose averages are the features."""
        raise NotImplementedError

    def for_inference(self) -> "Encoder":
        """Return what gives the same features in eval mode, faster where that can be."""
        return self


class ShuffleNetEncoder(Encoder):
    """GEM, ShuffleNetV2 x0.5 without the stem's max-pool, CBAM: stages, each averaged over its map.

    Parameters
    ----------
    stages
        Those to read: "stage2", "stage3", "stage4" and "conv5", which the paper calls S2 to S5.
    gem, cbam
        Whether these modules are there.
    residual
        GEM and CBAM add to what they are given, starting at nothing; else they replace it, and what GEM halves
        is halved without it, too.
    frozen
        Whether the backbone stays as it is, its batch statistics too.
    """

    pixel_mean: Tensor  # (3, 1, 1), of pixels in 0..1
    pixel_std: Tensor
    memory_format = torch.contiguous_format  # of what the convolutions are given
    sight = Sight()

    def __init__(
        self,
        stages: Sequence[str] = ("stage2", "stage3", "stage4"),
        *,
        gem: bool = False,
        cbam: bool = False,
        residual: bool = True,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.stages, self.residual, self.frozen = tuple(stages), residual, frozen
        self.groups = tuple(STAGES[stage] for stage in stages)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))
        self.gem = GEM() if gem else None
        self.gem_scale = nn.Parameter(torch.zeros(3, 1, 1)) if gem and residual else None
        self.backbone = ShuffleNetV2(stem_pool=False)
        if "conv5" not in stages:
            self.backbone.conv5 = nn.Sequential()
        if frozen:
            self.backbone.requires_grad_(False).eval()
        self.cbam = nn.ModuleList(CBAM(c) for c in self.groups) if cbam else None
        self.cbam_scale = nn.Parameter(torch.zeros(sum(self.groups))) if cbam and residual else None

    def extra_repr(self) -> str:
        """Return the settings that the weights do not tell."""
        return f"stages={self.stages}, residual={self.residual}"

    def train(self, mode: bool = True) -> "ShuffleNetEncoder":
        """Set the mode of all but a frozen backbone, which stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def enhance(self, pixels: Tensor) -> Tensor:
        """GEM, (N, 3, S, S) -> (N, 3, S/2, S/2); as a residual (N, 3, S, S)."""
        if self.gem_scale is not None and self.gem is not None:
            return pixels + self.gem_scale * F.interpolate(self.gem(pixels), size=pixels.shape[-2:])
        if self.gem is not None:
            return self.gem(pixels)
        return pixels if self.residual else F.avg_pool2d(pixels, 2)

    def normalise(self, patches: Tensor) -> Tensor:
        """(N, 3, S, S), 0..255, to pixels as the backbone's weights expect them."""
        # before channels come last: arithmetic is slow where only three lie together
        pixels = (patches / 255).sub_(self.pixel_mean).div_(self.pixel_std)
        # in training, strides other than these crash torch 2.13's convolutions on the CPU
        return pixels.contiguous(memory_format=self.memory_format)

    def forward(self, patches: Tensor) -> Tensor:
        maps = self.backbone.maps(self.enhance(self.normalise(patches)))
        found = dict(zip(STAGES, map(self._averages, STAGES, maps), strict=True))
        of_stages = zip(*(found[stage] for stage in self.stages), strict=True)
        plain, *weighed = (torch.cat(averages, dim=1) for averages in of_stages)
        if not weighed:
            return plain
        return weighed[0] if self.cbam_scale is None else plain + self.cbam_scale * weighed[0]

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W), 0..255, to the map of each stage, (N, C, H / stride, W / stride); without GEM and CBAM."""
        found = dict(zip(STAGES, self.backbone.maps(self.normalise(pixels)), strict=True))
        return [found[stage] for stage in self.stages]

    def _averages(self, stage: str, maps: Tensor) -> list[Tensor]:
        """Average a stage's maps, and what a CBAM makes of them; nothing of a stage that is not read."""
        if stage not in self.stages:
            return []
        weighed = [] if self.cbam is None else [self.cbam[self.stages.index(stage)](maps)]
        return [averaged_maps([of_stage]) for of_stage in (maps, *weighed)]

    def for_inference(self) -> "ShuffleNetEncoder":
        """Return a copy whose batch normalisations are folded into convolutions, channels last on a CPU."""
        fast = deepcopy(self).eval().requires_grad_(False)
        if self.pixel_mean.device.type == "cpu":
            fast.memory_format = torch.channels_last
        fast.backbone.fold(fast.memory_format)
        return fast

    @torch.no_grad()
    def normalise_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set what pixels in 0..1 are centred and scaled by, as the backbone's weights expect."""
        self.pixel_mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.pixel_std.copy_(torch.tensor(std).view(3, 1, 1))


def averaged_maps(maps: Sequence[Tensor]) -> Tensor:
    """Average maps (N, C, H, W), to (N, C) of all of them, in single precision whatever the maps are in."""
    return torch.cat([of_stage.mean((2, 3), dtype=torch.float32) for of_stage in maps], dim=1)


class ModuleEncoder(Encoder):
    """A module of the user's: it takes (N, 3, S, S) pixels in 0..1 and gives (N, D) features; never trained.

    Parameters
    ----------
    module
        The module, kept in eval mode and without gradients.
    patch_size
        S, on which it is tried once.

    Raises
    ------
    ValueError
        If it does not give a vector for each patch.
    """

    stored = False

    def __init__(self, module: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        state = chain(module.parameters(), module.buffers())
        like = next((tensor for tensor in state if tensor.is_floating_point()), torch.zeros(()))
        self.dtype = like.dtype
        with torch.no_grad():
            tried = module(torch.zeros(2, 3, patch_size, patch_size, device=like.device, dtype=like.dtype))
        if not isinstance(tried, Tensor) or tried.ndim != 2 or len(tried) != 2:
            found = tuple(tried.shape) if isinstance(tried, Tensor) else type(tried).__name__
            raise ValueError(
                f"encoder= must give one vector for each patch: 2 patches of {patch_size} px gave {found} instead of "
                "(2, features); wrap the module so that it pools its maps or takes its class token"
            )
        self.groups = (tried.shape[1],)

    def train(self, mode: bool = True) -> "ModuleEncoder":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, patches: Tensor) -> Tensor:
        return self.module((patches.float() / 255).to(self.dtype)).float()
