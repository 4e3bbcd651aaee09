import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import MeanColour
from hggep_sc.config import Config
from hggep_sc.encoders.weights import load_pretrained
from hggep_sc.nn import STAGES, ModuleEncoder, ShuffleNetEncoder, shufflenet_encoder, state_hash

DEFAULT = ("stage2", "stage3", "stage4")


def patches_of(n=10, size=32):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def encoder_of(stages=DEFAULT, **settings):
    """In eval mode, with the batch statistics of the patches, so that features are alive."""
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder(stages, **settings)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        encoder(patches_of())
    return encoder.eval()


def sharing(encoder, **settings):
    """Another encoder with the weights that both have."""
    other = ShuffleNetEncoder(encoder.stages, **settings)
    other.load_state_dict(encoder.state_dict(), strict=False)
    return other.eval()


def maps_of(encoder, pixels):
    """The backbone's maps by name."""
    return dict(zip(STAGES, encoder.backbone(pixels), strict=True))


def averages(maps, stages):
    """The mean over each map, a channel at a time."""
    found = [maps[stage] for stage in stages]
    return torch.stack([m[:, c].flatten(1).mean(1) for m in found for c in range(m.shape[1])], dim=1)


# --- ShuffleNet


@pytest.mark.parametrize("stages", [DEFAULT, ("stage3", "stage4", "conv5"), ("stage4", "stage2")])
def test_features_are_the_means_of_the_backbones_maps(stages):
    encoder = encoder_of(stages)
    with torch.no_grad():
        found = encoder(patches_of())
        expected = averages(maps_of(encoder, patches_of().float() / 255), stages)
    assert encoder.groups == tuple(STAGES[stage] for stage in stages)
    assert found.shape == (10, sum(encoder.groups))
    assert (found.std(0) > 0).float().mean() > 0.9
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stages", [DEFAULT, ("stage4", "conv5", "stage2")])
def test_maps_are_those_of_the_stages_that_are_read(stages):
    """Of any size, and fast too."""
    encoder, pixels = encoder_of(stages), patches_of(2, 80)
    with torch.no_grad():
        every = maps_of(encoder, pixels.float() / 255)
        for of in (encoder, encoder.for_inference()):
            for found, stage in zip(of.maps(pixels), stages, strict=True):
                atol = 1e-4 * every[stage].abs().max()
                torch.testing.assert_close(found, every[stage], rtol=0, atol=atol)


def test_the_papers_stages_replace():
    """GEM halves, CBAM weighs, and both replace what they are given."""
    config = Config.from_preset("paper")
    encoder = encoder_of(config.stages, gem=True, cbam=True, residual=False, frozen=False)
    assert encoder.gem_scale is encoder.cbam_scale is None
    with torch.no_grad():
        maps = maps_of(encoder, encoder.gem(patches_of().float() / 255))
        weighed = [cbam(maps[stage]) for cbam, stage in zip(encoder.cbam, config.stages, strict=True)]
        expected = torch.cat([m.mean((2, 3)) for m in weighed], dim=1)
        torch.testing.assert_close(encoder(patches_of()), expected, atol=1e-5, rtol=1e-5)


def test_what_the_papers_gem_halves_is_halved_without_it():
    encoder = encoder_of(residual=False)
    with torch.no_grad():
        halved = F.interpolate(patches_of().float() / 255, scale_factor=0.5, mode="area")
        expected = averages(maps_of(encoder, halved), DEFAULT)
        torch.testing.assert_close(encoder(patches_of()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("modules", [{"gem": True}, {"cbam": True}, {"gem": True, "cbam": True}])
def test_residual_modules_start_at_nothing(modules, size):
    encoder = encoder_of(**modules)
    patches = patches_of(size=size)
    with torch.no_grad():
        plain = sharing(encoder)(patches)
        assert torch.equal(encoder(patches), plain)
        for scale in (encoder.gem_scale, encoder.cbam_scale):
            if scale is not None:
                scale.fill_(0.5)
        assert not torch.allclose(encoder(patches), plain, atol=1e-3)


def test_a_residual_gem_adds_its_enlarged_output():
    encoder = encoder_of(gem=True)
    pixels = patches_of().float() / 255
    with torch.no_grad():
        encoder.gem_scale.copy_(torch.tensor([0.5, 0.0, -2.0]).view(3, 1, 1))
        enlarged = encoder.gem(pixels).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = torch.stack(
            [pixels[:, 0] + 0.5 * enlarged[:, 0], pixels[:, 1], pixels[:, 2] - 2 * enlarged[:, 2]], 1
        )
        torch.testing.assert_close(encoder.enhance(pixels), expected)


def test_a_residual_cbam_adds_what_it_weighs():
    encoder = encoder_of(cbam=True)
    with torch.no_grad():
        encoder.cbam_scale.normal_()
        maps = maps_of(encoder, patches_of().float() / 255)
        weighed = [c(maps[s]).mean((2, 3)) for c, s in zip(encoder.cbam, DEFAULT, strict=True)]
        expected = averages(maps, DEFAULT) + encoder.cbam_scale * torch.cat(weighed, dim=1)
        torch.testing.assert_close(encoder(patches_of()), expected, atol=1e-5, rtol=1e-5)


def test_pixels_are_scaled_as_the_weights_ask():
    encoder = encoder_of()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    expected = encoder(((patches_of().float() / 255 - shift) / scale) * 255)
    encoder.normalise_pixels(mean, std)
    torch.testing.assert_close(encoder(patches_of()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_as_it_is(frozen):
    """Neither gradients nor batch statistics reach it in training; GEM and CBAM learn through it."""
    encoder = encoder_of(gem=True, cbam=True, frozen=frozen).train()
    before = copy.deepcopy(encoder.backbone.state_dict())
    with torch.no_grad():
        encoder.gem_scale.fill_(0.1)
        encoder.cbam_scale.fill_(0.1)
    encoder(patches_of(n=4)).sum().backward()
    kept = [torch.equal(before[name], value) for name, value in encoder.backbone.state_dict().items()]
    assert all(kept) == frozen
    of_backbone = {name: p.grad is not None for name, p in encoder.named_parameters() if name.startswith("backbone")}
    assert set(of_backbone.values()) == {not frozen}
    others = {name: p.grad for name, p in encoder.named_parameters() if not name.startswith("backbone")}
    assert {name.split(".")[0] for name in others} == {"gem", "gem_scale", "cbam", "cbam_scale"}
    assert all(gradient is not None for gradient in others.values())


def test_configurations_make_the_encoder_they_describe():
    plain = shufflenet_encoder(Config())
    assert (plain.stages, plain.residual, plain.frozen) == (DEFAULT, True, True)
    assert plain.gem is plain.cbam is None
    paper = shufflenet_encoder(Config.from_preset("paper"))
    assert (paper.stages, paper.residual, paper.frozen) == (("stage3", "stage4", "conv5"), False, False)
    assert paper.gem is not None
    assert len(paper.cbam) == 3
    frozen = Config.from_preset("paper", gem=False, cbam=False, backbone_learning_rate=0.0)
    assert shufflenet_encoder(frozen).residual  # there is nothing to replace, and pixels are not halved


# --- a module of the user's


class Asleep(nn.Module):
    """Tells its mode, and whether gradients are wanted."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels):
        assert not self.training
        return self.dropout(self.layer(pixels.mean((2, 3))))


def test_a_module_is_given_pixels_from_0_to_1():
    encoder = ModuleEncoder(MeanColour(), 32)
    assert encoder.groups == (3,)
    expected = patches_of().double().flatten(2).mean(2) / 255
    torch.testing.assert_close(encoder(patches_of()).double(), expected, atol=1e-6, rtol=0)


def test_a_module_stays_in_eval_mode_and_has_no_gradients():
    module = Asleep()
    encoder = ModuleEncoder(module, 32)
    encoder.train()
    assert not any(m.training for m in encoder.modules())
    found = encoder(patches_of())
    assert not found.requires_grad
    assert not any(p.requires_grad for p in module.parameters())
    assert torch.equal(found, encoder(patches_of()))  # without dropout


def test_features_in_half_precision_become_single():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(torch.bfloat16)
    encoder = ModuleEncoder(Half(module), 32)
    assert encoder(patches_of()).dtype == torch.float32


class Half(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pixels):
        return self.module(pixels.bfloat16())


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (nn.Identity(), r"gave \(2, 3, 32, 32\) instead of \(2, features\)"),
        (nn.AdaptiveAvgPool2d(1), r"gave \(2, 3, 1, 1\) instead"),
        (nn.Flatten(0), r"gave \(6144,\) instead"),
        (nn.Flatten(0, 2), r"gave \(192, 32\) instead"),
    ],
)
def test_a_module_that_gives_no_vector_per_patch_is_refused(module, found):
    with pytest.raises(ValueError, match=rf"2 patches of 32 px {found}.*pools its maps"):
        ModuleEncoder(module, 32)


def test_a_module_that_gives_several_tensors_is_refused():
    class Both(nn.Module):
        def forward(self, pixels):
            return pixels.mean((2, 3)), pixels

    with pytest.raises(ValueError, match="gave tuple instead"):
        ModuleEncoder(Both(), 32)


# --- inference


@pytest.mark.parametrize(
    "settings",
    [{}, {"gem": True, "cbam": True}, {"frozen": False}, {"stages": ("stage4", "conv5", "stage2"), "residual": False}],
)
@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize("size", [16, 32, 45])
def test_for_inference_gives_the_same(settings, n, size):
    encoder = encoder_of(**settings)
    before = copy.deepcopy(encoder.state_dict())
    fast = encoder.for_inference()
    assert not list(fast.backbone.parameters())
    with torch.no_grad():
        expected = encoder(patches_of(n, size))
        torch.testing.assert_close(fast(patches_of(n, size)), expected, rtol=0, atol=1e-4 * expected.abs().max())
        turned = patches_of(n, size).permute(0, 1, 3, 2)
        torch.testing.assert_close(fast(turned), encoder(turned), rtol=0, atol=1e-4 * expected.abs().max())
    assert encoder.memory_format == torch.contiguous_format
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()


def test_for_inference_with_pretrained_weights(shared):
    """To rounding; random ones' batch statistics are small, and amplify it."""
    encoder = ShuffleNetEncoder()
    load_pretrained(encoder, shared / "weights" / "shufflenetv2_x0_5_trunk.pth")
    encoder.eval()
    with torch.no_grad():
        expected, found = encoder(patches_of(4, 112)), encoder.for_inference()(patches_of(4, 112))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_a_module_is_its_own_for_inference():
    encoder = ModuleEncoder(MeanColour(), 32)
    assert encoder.for_inference() is encoder


# --- names


def test_the_hash_tells_weights_apart():
    encoder = encoder_of()
    same = sharing(encoder)
    assert same.id == encoder.id
    with torch.no_grad():
        same.backbone.stage4[0].branch1[0].weight[0, 0, 0, 0] += 1e-6
    assert same.id != encoder.id
    pixels = sharing(encoder)
    pixels.normalise_pixels((0, 0, 0), (1, 1, 0.5))
    assert pixels.id != encoder.id


def test_the_hash_is_of_values_and_their_type():
    linear = nn.Linear(6, 4)
    turned = nn.Linear(6, 4)
    turned.weight = nn.Parameter(linear.weight.detach().t().contiguous().t(), requires_grad=False)
    turned.bias = linear.bias
    assert state_hash(turned) == state_hash(linear)
    assert state_hash(copy.deepcopy(linear).to(torch.bfloat16)) != state_hash(linear)


@pytest.mark.parametrize(
    "other", [{"stages": ("stage3", "stage4")}, {"stages": ("stage4", "stage3", "stage2")}, {"residual": False}]
)
def test_the_hash_tells_apart_what_is_done_with_the_same_weights(other):
    encoder = encoder_of()
    changed = ShuffleNetEncoder(**{"stages": DEFAULT, **other})
    changed.load_state_dict(encoder.state_dict())
    assert changed.id != encoder.id


def test_the_hash_tells_modules_without_weights_apart():
    class Darkest(nn.Module):
        def forward(self, pixels):
            return pixels.amin((2, 3))

    assert ModuleEncoder(Darkest(), 32).id != ModuleEncoder(MeanColour(), 32).id
    assert ModuleEncoder(MeanColour(), 32).id == ModuleEncoder(MeanColour(), 32).id
