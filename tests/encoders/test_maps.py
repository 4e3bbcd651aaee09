"""What transformers and convolutional networks make of a slide, seen by patches or in tiles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hggep_sc as hggep
from hggep_sc import encoders, settings
from hggep_sc.features.patches import read_patches
from hggep_sc.features.store import describe_section
from hggep_sc.nn import Sight
from plain_windows import summed_by_loop

CPU = torch.device("cpu")
PX, TOKEN = 64, 8


class Local(nn.Module):
    """A transformer whose patch tokens see no more than their own pixels; two tokens come before them."""

    def __init__(self, depends_on_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 5, TOKEN, stride=TOKEN)
        self.place = torch.randn(5, PX // TOKEN, PX // TOKEN) if depends_on_place else 0.0

    def tokens(self, pixels):
        found = (self.embed(pixels) + self.place).flatten(2).transpose(1, 2)
        return torch.cat([found.mean(1, keepdim=True), torch.full_like(found[:, :1], 9.0), found], dim=1)


def named(network):
    info = encoders.EncoderInfo("local", lambda _: None, px=PX, mpp=0.5)
    maps = encoders.TokenMaps(network, lambda whole, pixels: whole.tokens(pixels), token_px=TOKEN, prefix=2, px=PX)
    return encoders.NamedEncoder(info, maps)


@pytest.mark.parametrize(
    ("px", "token_px", "expected"),
    [(224, 16, (48, 128)), (224, 14, (56, 112)), (224, 8, (56, 112)), (448, 16, (112, 224)), (224, 32, (32, 160))],
)
def test_the_middle_of_a_square_is_taken(px, token_px, expected):
    sight = Sight.of_size(px, token_px)
    assert (sight.surroundings, sight.tile, sight.native) == (*expected, px)
    assert sight.surroundings % token_px == sight.tile % token_px == 0


def test_by_patches_it_is_what_its_authors_have(section, monkeypatch):
    """Each spot's own patch, without surroundings: class token and mean of patch tokens."""
    monkeypatch.setattr(settings, "feature_route", "crops")
    encoder, fields = named(Local(depends_on_place=True)), (PX, 2 * PX)
    found = describe_section(section, encoder, fields, PX, device=CPU).encoded
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy, fields, PX))
    with torch.no_grad():
        expected = encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape[-1] == 10


def test_in_tiles_patch_tokens_are_averaged_over_the_window(section, monkeypatch):
    """By what does not see where in the tile it is: against the whole image at once, cell by cell."""
    monkeypatch.setattr(settings, "feature_route", "maps")
    encoder = named(Local())
    section.xy[:] = TOKEN * np.round(section.xy / TOKEN)  # so that windows are made of whole cells
    found = describe_section(section, encoder, (PX,), PX, device=CPU).encoded[:, 0, 5:]
    margin = 2 * PX
    with section.open_image() as image:
        pixels = image.thumbnail(max(image.shape))
        laid_out = np.empty((*(np.array(pixels.shape[:2]) + 2 * margin), 3), dtype=np.uint8)
        laid_out[:] = image.background
        laid_out[margin:-margin, margin:-margin] = pixels
    rows, columns = (side // TOKEN * TOKEN for side in laid_out.shape[:2])
    whole = torch.from_numpy(laid_out[:rows, :columns]).permute(2, 0, 1)[None]
    normalised = (whole / 255 - encoder.pixel_mean) / encoder.pixel_std
    with torch.no_grad():
        cells = encoder.network.transformer.embed(normalised)[0].numpy()
    low = (section.xy + margin - PX / 2) / TOKEN
    expected = [summed_by_loop(cells, *corner, *(corner + PX / TOKEN)) * (TOKEN / PX) ** 2 for corner in low]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_transformer_takes_its_own_size_alone(sections):
    info = encoders.EncoderInfo(
        "local",
        lambda _: encoders.TokenMaps(Local(), lambda whole, x: whole.tokens(x), token_px=TOKEN, prefix=2, px=PX),
        px=PX,
        mpp=None,
    )
    encoders.register(info)
    try:
        hggep.tl.fit(sections, method="ridge", encoder="local", weights=None, device="cpu", progress=False)
        with pytest.raises(ValueError, match=r"config.patch_size=112: this encoder takes patches of 64 px"):
            hggep.tl.fit(
                sections,
                method="ridge",
                encoder="local",
                weights=None,
                config={"patch_size": 112},
                device="cpu",
                progress=False,
            )
    finally:
        encoders.registry._known.pop("local")


def test_convolutions_see_surroundings(section, monkeypatch):
    """EfficientNet-Lite0: tiles and windows with surroundings give nearly the same, windows alone do not."""
    encoder, found = encoders.load("efficientnet_lite0"), {}
    for way in ("maps", "crops"):
        monkeypatch.setattr(settings, "feature_route", way)
        settings.feature_memory, kept = 0, settings.feature_memory
        found[way] = describe_section(section, encoder, (112.0,), 112, device=CPU).encoded[:, 0]
        settings.feature_memory = kept
    with section.open_image() as image:
        patches = torch.from_numpy(read_patches(image, section.xy, (112.0,), 112)[:, 0])
    with torch.no_grad():
        alone = encoder(F.pad(patches.float(), (0, 16, 0, 16), mode="replicate")).numpy()
    ends = np.cumsum(encoder.groups)[:-1]
    parts = zip(*(np.split(values, ends, axis=1) for values in (*found.values(), alone)), strict=True)
    apart = [np.abs(maps - crops).mean() / np.abs(plain - crops).mean() for maps, crops, plain in parts]
    assert max(apart[:3]) < 0.5
    assert max(apart) < 1  # where cells of 32 px begin differs, too


@pytest.mark.parametrize("size", [(2, 3, 96, 64), (1, 3, 448, 512)])  # which a CPU expands at once, and in parts
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_what_is_made_for_inference_gives_the_same(name, size):
    encoder = encoders.load(name)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    fast = encoder.for_inference()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    pixels = torch.randint(256, size, generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        for expected, found in zip(encoder.maps(pixels), fast.maps(pixels), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    transformer = named(Local())
    assert transformer.for_inference() is transformer
