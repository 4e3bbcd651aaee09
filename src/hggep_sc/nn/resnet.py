"""ResNet-50 (He et al., CVPR 2016), its stride on the 3x3 convolution, with torchvision's entry names."""

from collections.abc import Sequence

from torch import Tensor, nn

DEPTHS = (3, 4, 6, 3)  # bottlenecks of the four stages
EXPANSION = 4  # times as many channels leave a bottleneck as are inside


class Bottleneck(nn.Module):
    """y = ReLU(x' + bn3(conv3(ReLU(bn2(conv2(ReLU(bn1(conv1 x)))))))), x' = x or its projection."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Normalised pixels to the mean of the last stage's map.

    Parameters
    ----------
    depths
        Bottlenecks of each stage.
    width
        Channels of the stem, and inside the first stage's bottlenecks; each further stage has twice as many.
    classes
        Of the classifier `fc`, which is not used, but is there in some files; None without it.
    """

    def __init__(self, depths: Sequence[int] = DEPTHS, width: int = 64, classes: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for number, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            inner = width * 2**number
            blocks = [Bottleneck(channels, inner, 2 if number else 1)]
            channels = EXPANSION * inner
            blocks += [Bottleneck(channels, inner, 1) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
        self.n_features = channels
        if classes is not None:
            self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, n_features)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))
