"""Encoders by name: patches to features by a network that others trained, which stays as it is."""

from copy import deepcopy
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..nn import Encoder, averaged_maps, state_hash
from .card import EncoderInfo
from .maps import StageMaps


class NamedEncoder(Encoder):
    """A network that is known by a name; never trained.

    Parameters
    ----------
    info
        What is known of it.
    network
        What `info.build` made: it gives features, or maps.
    random
        Whether its weights are.

    Raises
    ------
    ModelError
        If it does not give as many features as it is known for.
    """

    pixel_mean: Tensor  # (3, 1, 1), of pixels in 0..1
    pixel_std: Tensor
    stored = False

    def __init__(self, info: EncoderInfo, network: nn.Module, *, random: bool = False) -> None:
        super().__init__()
        self.info, self.random = info, random
        self.network = network.requires_grad_(False).eval()
        self.sight = getattr(network, "sight", None)
        self.register_buffer("pixel_mean", torch.tensor(info.mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(info.std).view(3, 1, 1))
        tried = torch.zeros(1, 3, info.px, info.px)
        with torch.no_grad():
            parts = self.maps(tried) if self.sight is not None else [self.network(tried)]
        self.groups = tuple(part.shape[1] for part in parts)
        if self.sight is None and (parts[0].ndim != 2 or len(parts[0]) != 1):
            raise ModelError(f"encoder {info.name!r}: a patch gave {tuple(parts[0].shape)} in place of (1, features)")
        if info.dimension is not None and sum(self.groups) != info.dimension:
            raise ModelError(
                f"encoder {info.name!r}: the weights are of another network, with {sum(self.groups)} features in place "
                f"of {info.dimension}"
            )

    @cached_property
    def id(self) -> str:  # weights never change: hashed once
        """Name and hash of the weights; what is computed from them tells `calibration`."""
        return f"{self.info.name}-{state_hash(self, classes=False)}"

    def train(self, mode: bool = True) -> "NamedEncoder":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, patches: Tensor) -> Tensor:
        if self.sight is not None:
            return averaged_maps(self.maps(patches))
        return self.network(self._normalised(patches)).float()

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W), 0..255, to maps (N, C, H / stride, W / stride), of one that has `sight`."""
        return self.network.maps(self._normalised(pixels))  # type: ignore[operator]  # nn.Module has no such thing

    def for_inference(self) -> "NamedEncoder":
        """Return a copy of a convolutional network that is faster, channels last on a CPU."""
        if not isinstance(self.network, StageMaps):
            return self
        fast = deepcopy(self)
        assert isinstance(fast.network, StageMaps)  # a copy of this one's
        network = fast.network.for_inference()
        if self.pixel_mean.device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        fast.network = network
        return fast

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels / 255 - self.pixel_mean) / self.pixel_std


def calibration(encoder: Encoder, px: int) -> list[float]:
    """Return what an encoder makes of one fixed patch: the first features, and the mean and spread of all.

    Two machines agree in it to rounding; a library that builds another network of the same weights does not.
    """
    rows, columns = np.mgrid[:px, :px]
    channels = [(rows * a + columns * b + rows * columns // 7) % 256 for a, b in ((3, 5), (7, 2), (1, 11))]
    patch = torch.from_numpy(np.stack(channels).astype(np.uint8))[None]
    device = next(encoder.buffers(), next(encoder.parameters(), torch.zeros(()))).device
    with torch.no_grad():
        found = encoder(patch.to(device))[0].double().cpu()
    return [*found[:CALIBRATED].tolist(), found.mean().item(), found.std(correction=0).item()]


CALIBRATED = 16  # features that are noted
SAME = 0.01  # of the spread of all features, by which rounding may move one


def calibrated_as(noted: list[float], found: list[float]) -> bool:
    """Whether two calibrations are the same but for rounding."""
    return len(noted) == len(found) and bool(
        np.abs(np.subtract(noted, found)).max() <= SAME * max(abs(noted[-1]), 1e-6)
    )
