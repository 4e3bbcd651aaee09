"""Every encoder that is known by name, as a small random network of the same architecture, saved as a snapshot."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hggep_sc import encoders
from hggep_sc.encoders.registry import _BUILT_IN
from hggep_sc.errors import ModelError
from torchvision_stand_in import stand_in

stand_in()

# settings that make each small, and the features that it then has
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4}
OF_TIMM = {
    "uni": SMALL,
    "uni2_h": SMALL,
    "conch": SMALL,
    "virchow": SMALL,
    "virchow2": SMALL,
    "h_optimus_0": SMALL,
    "h_optimus_1": SMALL,
    "h0_mini": SMALL,
    "gigapath": SMALL,
    "kaiko_b8": SMALL,
}
OF_TRANSFORMERS = {
    name: {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    for name in ("phikon", "phikon_v2", "midnight_12k", "hibou_b", "hibou_l")
}
OTHERS = ["efficientnet_lite0", "efficientnet_lite2", "resnet50", "ctranspath"]


def patches(px, n=2):
    return torch.randint(0, 256, (n, 3, px, px), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def small(name, **settings):
    """What is known of an encoder, but for its size."""
    info = encoders.info(name)
    return replace(info, build=partial(info.build, **settings), dimension=96)


def network_of(info, path=None):
    torch.manual_seed(0)
    return encoders.NamedEncoder(info, info.build(path))


def test_all_names_are_tested():
    assert {*OF_TIMM, *OF_TRANSFORMERS, *OTHERS, "shufflenet"} == set(_BUILT_IN)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("name", OF_TIMM)
def test_a_snapshot_for_timm(tmp_path, name, suffix):
    """Class token and mean of patch tokens, against timm's own."""
    info = small(name, **OF_TIMM[name])
    written = network_of(info).network.transformer
    within = info.build.keywords.get("within", "")
    state = {within + key: value.clone() for key, value in written.state_dict().items()}
    if within:
        state["text.entry"] = torch.zeros(3)  # of the rest of the larger network
    if suffix == ".bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    encoder = encoders.NamedEncoder(info, info.build(tmp_path))
    seen = patches(info.px)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    with torch.no_grad():
        tokens = written.eval().forward_features((seen / 255 - mean) / std)
        found = encoder(seen)
    expected = torch.cat([tokens[:, 0], tokens[:, written.num_prefix_tokens :].mean(1)], dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.groups == (48, 48)


def test_sizes_of_a_snapshot_are_those_that_it_tells(tmp_path):
    written = network_of(small("uni", **SMALL)).network.transformer
    save_file(written.state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": "vit_large_patch16_224", "num_classes": 0, "model_args": {**SMALL, "num_classes": 0}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    info = replace(encoders.info("uni"), dimension=96)
    seen = patches(224)
    with torch.no_grad():
        np.testing.assert_allclose(
            encoders.NamedEncoder(info, info.build(tmp_path))(seen)[:, :48],
            written((seen / 255 - torch.tensor(info.mean).view(3, 1, 1)) / torch.tensor(info.std).view(3, 1, 1)),
            atol=1e-5,
        )


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_snapshot_for_transformers(tmp_path, name):
    info = small(name, **OF_TRANSFORMERS[name])
    written = network_of(info).network.transformer
    written.save_pretrained(tmp_path)
    encoder = encoders.NamedEncoder(info, info.build(tmp_path))
    seen = patches(224)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    with torch.no_grad():
        tokens = written.eval()(pixel_values=(seen / 255 - mean) / std).last_hidden_state
        found = encoder(seen)
    n_patches = (224 // written.config.patch_size) ** 2
    expected = torch.cat([tokens[:, 0], tokens[:, -n_patches:].mean(1)], dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ctranspath_is_the_mean_of_the_last_map(tmp_path):
    info = encoders.info("ctranspath")
    encoder = network_of(info)
    written = encoder.network.network
    save_file(written.state_dict(), tmp_path / "model.safetensors")
    again = encoders.NamedEncoder(info, info.build(tmp_path))
    seen = patches(224)
    with torch.no_grad():
        last = written.forward_features((seen / 255 - encoder.pixel_mean) / encoder.pixel_std)
        np.testing.assert_allclose(again(seen), last.mean((1, 2)), atol=1e-5)


def test_resnet50_reads_the_ends_of_its_stages(tmp_path):
    import timm

    torch.manual_seed(0)
    whole = timm.create_model("resnet50", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    encoder, seen = encoders.load("resnet50", tmp_path), patches(96)
    pixels = (seen / 255 - encoder.pixel_mean) / encoder.pixel_std
    with torch.no_grad():
        maps, expected = whole.maxpool(whole.act1(whole.bn1(whole.conv1(pixels)))), []
        for stage in (whole.layer1, whole.layer2, whole.layer3):
            maps = stage(maps)
            expected.append(maps.mean((2, 3)))
        np.testing.assert_allclose(encoder(seen), torch.cat(expected, dim=1), atol=1e-5)


@pytest.mark.parametrize("name", ["uni", "conch", "phikon", "efficientnet_lite0"])
def test_another_networks_snapshot_is_refused(tmp_path, name):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 1}))
    path = tmp_path / "model.safetensors" if name == "efficientnet_lite0" else tmp_path
    with pytest.raises(ModelError, match=r"does not hold the weights|is of another network|no snapshot"):
        encoders.load(name, path)


@pytest.mark.parametrize("name", ["uni", "phikon"])
def test_a_folder_without_weights_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"holds no file of weights.*`hf download {encoders.info(name).hub}`"):
        encoders.load(name, tmp_path)


def test_another_number_of_features_is_refused():
    info = replace(small("uni", **SMALL), dimension=97)
    with pytest.raises(ModelError, match=r"with 96 features in place of 97"):
        network_of(info)


@pytest.mark.parametrize(
    ("name", "groups", "ends"),
    [
        ("efficientnet_lite0", (16, 24, 40, 112, 320), [0, 2, 4, 10, 15]),
        ("efficientnet_lite2", (16, 24, 48, 120, 352), [0, 3, 6, 14, 20]),
    ],
)
def test_an_efficientnet_of_imagenet_gives_the_last_map_of_each_resolution(name, groups, ends):
    """With the weights that its package holds, against its blocks one by one."""
    encoder = encoders.load(name)
    assert encoder is encoders.load(name, "imagenet")
    assert encoder.groups == groups
    with torch.no_grad():
        pixels = (patches(112) / 255 - 127 / 255) / (128 / 255)
        whole = encoder.network.network
        maps, last = whole._swish(whole._bn0(whole._conv_stem(pixels))), []
        for block in whole._blocks:
            maps = block(maps)
            last.append(maps)
        expected = torch.cat([last[i].mean((2, 3)) for i in ends], dim=1)
        np.testing.assert_allclose(encoder(patches(112)), expected, atol=1e-5)


def test_a_snapshot_with_other_tokens_is_refused(tmp_path):
    """GigaPath's tokens are of 16 px, H-optimus-0's of 14, and both have as many features."""
    written = network_of(small("gigapath", **SMALL)).network.transformer
    save_file(written.state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": "vit_giant_patch14_dinov2", "model_args": {**SMALL, "patch_size": 16, "mlp_ratio": 5.33334}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"stand for 16 px and follow 1 others, where .* 14 px and follow 5"):
        encoders.info("h_optimus_0").build(tmp_path)


def test_half_precision_is_computed_in_single(tmp_path):
    info = small("phikon", **OF_TRANSFORMERS["phikon"])
    network_of(info).network.transformer.half().save_pretrained(tmp_path)
    encoder = encoders.NamedEncoder(info, info.build(tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
