import logging
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from hggep_sc import settings
from hggep_sc.encoders.weights import IMAGENET_FILE, load_weights, locate_weights
from hggep_sc.nn.shufflenet import ShuffleNetV2


def random_state(prefixes=("conv1", "stage2", "stage3", "stage4", "conv5")):
    state = ShuffleNetV2(stem_pool=True).state_dict()
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in state.items()
        if name.startswith(tuple(prefixes))
    }


def load(network, weights):
    """As training does: find the file, then load it."""
    path = locate_weights(weights)
    if path is not None:
        load_weights(network, path)


@pytest.fixture
def network():
    return ShuffleNetV2(stem_pool=False)


def assert_holds(network, state):
    held = network.state_dict()
    assert all(torch.equal(held[name], value) for name, value in state.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_is_loaded(network, tmp_path, suffix):
    path, state = tmp_path / f"w{suffix}", random_state()
    (torch.save if suffix == ".pth" else lambda s, p: save_file(s, p))(state, path)
    load(network, path)
    assert_holds(network, state)


def test_none_leaves_the_network_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load(network, None)
    assert_holds(network, before)


def test_partial_file_is_loaded_and_gaps_are_logged(network, tmp_path, caplog):
    path, state = tmp_path / "partial.pth", random_state(("conv1", "stage2", "stage3", "stage4"))
    torch.save({**state, "fc.weight": torch.rand(1000, 1024), "fc.bias": torch.rand(1000)}, path)
    before = network.conv5[0].weight.clone()
    with caplog.at_level(logging.INFO, logger="hggep_sc.encoders.weights"):
        load(network, str(path))
    assert_holds(network, state)
    assert torch.equal(network.conv5[0].weight, before)
    missing, unknown = caplog.messages
    assert "conv5.0.weight" in missing
    assert "stage" not in missing
    assert "fc.bias, fc.weight" in unknown


def test_shared_trunk(network, shared, caplog):
    path = shared / "weights" / "shufflenetv2_x0_5_trunk.pth"
    with caplog.at_level(logging.INFO, logger="hggep_sc.encoders.weights"):
        load(network, path)
    assert_holds(network, torch.load(path, weights_only=True))
    (missing,) = caplog.messages
    assert "conv5.0.weight" in missing
    assert "conv1." not in missing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"backbone.conv1": torch.rand(3)}, "none of its 1 entries"),
        (
            {"conv1.0.weight": torch.rand(32, 3, 3, 3)},
            r"conv1.0.weight \(32, 3, 3, 3\) instead of \(24, 3, 3, 3\)",
        ),
        ({"state_dict": {"conv1.0.weight": torch.rand(24, 3, 3, 3)}}, "flat dict"),
        ([1, 2], "flat dict"),
    ],
)
def test_foreign_files_are_refused(network, tmp_path, content, message):
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"foreign.pth.*{message}"):
        load(network, path)
    assert_holds(network, before)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("keep", [0, 1000])
def test_damaged_files_are_refused(network, tmp_path, name, keep):
    path, state = tmp_path / name, random_state(("conv1",))
    (torch.save if name.endswith("pth") else lambda s, p: save_file(s, p))(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name}: not a readable" if keep else f"{name} is empty"):
        load(network, path)


def test_pickled_code_is_refused(network, tmp_path):
    path = tmp_path / "module.pth"
    torch.save(network, path)
    with pytest.raises(ValueError, match="not a readable"):
        load(network, path)


def test_missing_file(network, tmp_path):
    with pytest.raises(FileNotFoundError, match="pretrained"):
        load(network, tmp_path / "nowhere.pth")


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    """Stand-in for the downloader: `calls` lists its arguments, `answer` is what it does."""
    module = ModuleType("hggep_sc.storage.fetch")
    module.calls = []

    def fetch(url, *, sha256, path):
        module.calls.append((url, sha256, path))
        return module.answer(path)

    module.fetch = fetch
    monkeypatch.setitem(sys.modules, "hggep_sc.storage.fetch", module)
    monkeypatch.setattr(settings, "dataset_dir", tmp_path / "data")
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    return module


def test_imagenet_is_fetched_with_its_hash(network, fetch, tmp_path):
    state = random_state()

    def download(path):
        path.parent.mkdir(parents=True)
        torch.save(state, path)
        return path

    fetch.answer = download
    load(network, "imagenet")
    assert_holds(network, state)
    ((url, sha256, path),) = fetch.calls
    assert url == f"https://download.pytorch.org/models/{IMAGENET_FILE}"
    assert sha256.startswith("f707e7126e")  # torchvision's file name carries the start of the hash
    assert len(sha256) == 64
    assert path == tmp_path / "cache" / "weights" / IMAGENET_FILE
    assert not (tmp_path / "data").exists()  # which may be read-only


def test_imagenet_beside_the_data_sets_is_taken(fetch, tmp_path):
    there = tmp_path / "data" / "weights" / IMAGENET_FILE
    there.parent.mkdir(parents=True)
    there.touch()
    fetch.answer = lambda path: path
    assert locate_weights("imagenet") == there


def test_imagenet_offline_names_the_alternatives(network, fetch):
    def fail(path):
        raise ConnectionError("no route")

    fetch.answer = fail
    with pytest.raises(RuntimeError, match=r"no route.*weights=None") as raised:
        load(network, "imagenet")
    assert raised.value.__suppress_context__


def test_imagenet_offline_is_one_message(monkeypatch, tmp_path):
    """Through the real download, at an address where nobody answers."""
    import socket
    import traceback

    from hggep_sc.encoders import weights

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/{IMAGENET_FILE}"
    monkeypatch.setattr(weights, "IMAGENET_URL", url)
    for name in ("dataset_dir", "cache_dir"):
        monkeypatch.setattr(settings, name, tmp_path / name)
    with pytest.raises(RuntimeError) as raised:
        locate_weights("imagenet")
    told = "".join(traceback.format_exception(raised.value))
    assert told.count("Traceback") == 1
    assert told.count("server cannot be reached") == 1
    assert told.count(url) == 1
    assert str(raised.value).endswith("weights=None for random weights")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
