"""ImageNet weights of the rivals' backbones, of whose SHA-256 the first digits are known."""

import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from hggep_sc import settings
from hggep_sc.encoders import weights
from hggep_sc.encoders.weights import locate_weights
from hggep_sc.errors import WeightsError, WrongFileError

CONTENT = b"weights of a backbone"
START = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server of one file, and a cache of our own."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / f"net-{START}.pth").write_bytes(CONTENT)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path / "server"))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(settings, "dataset_dir", tmp_path / "data")
    url = f"http://127.0.0.1:{server.server_port}/net-{START}.pth"
    monkeypatch.setitem(weights.BACKBONES, "resnet50", url)
    yield tmp_path
    server.shutdown()
    server.server_close()


def test_the_names_end_in_digits_of_the_hash():
    for url in weights.BACKBONES.values():
        assert len(bytes.fromhex(url.rpartition("-")[2].removesuffix(".pth"))) == 4


def test_downloaded_once_and_checked(served):
    found = locate_weights("pretrained", "resnet50")
    assert found == served / "cache" / "weights" / f"net-{START}.pth"
    assert found.read_bytes() == CONTENT
    (served / "server" / f"net-{START}.pth").unlink()
    assert locate_weights("pretrained", "resnet50") == found
    found.write_bytes(b"something else")
    with pytest.raises(WrongFileError, match="not the expected file"):
        locate_weights("pretrained", "resnet50")


def test_another_file_is_not_kept(served):
    (served / "server" / f"net-{START}.pth").write_bytes(b"a proxy's page")
    with pytest.raises(WrongFileError, match="not the expected file"):
        locate_weights("pretrained", "resnet50")
    assert not any((served / "cache" / "weights").iterdir())


def test_one_that_is_at_hand_is_taken(served):
    (served / "data" / "weights").mkdir(parents=True)
    (served / "data" / "weights" / f"net-{START}.pth").write_bytes(CONTENT)
    assert locate_weights("pretrained", "resnet50").parent == served / "data" / "weights"
    assert locate_weights(None, "resnet50") is None


def test_no_server(served, monkeypatch):
    monkeypatch.setitem(weights.BACKBONES, "resnet50", f"http://127.0.0.1:9/net-{START}.pth")
    with pytest.raises(WeightsError, match=r"cannot be reached.*weights=None for random weights, or encoder="):
        locate_weights("pretrained", "resnet50")
