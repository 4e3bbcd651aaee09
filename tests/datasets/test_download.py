"""Downloads against a server on this machine; what is there already is never asked for."""

import gzip
import hashlib
import http.server
import logging
import threading
from functools import partial

import pytest

from hggep_sc import settings
from hggep_sc.datasets import _her2st, _mob
from hggep_sc.storage import fetch as _fetch
from hggep_sc.storage.fetch import check, fetch

CONTENT = b"spot\tgene\n1x1\t3\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder served over http: (its url, the folder, the paths asked for so far)."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder, running.asked
        running.shutdown()
        thread.join()


@pytest.fixture
def unreachable(server):
    """A url at which nobody answers any more."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


def test_a_file_is_downloaded_checked_and_then_left_alone(server, tmp_path, capfd):
    url, folder, asked = server
    (folder / "a.tsv").write_bytes(CONTENT)
    target = tmp_path / "deep" / "folder" / "a.tsv"
    assert fetch(url + "a.tsv", sha256=SHA256, path=target) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["a.tsv"]
    fetch(url + "a.tsv", sha256=SHA256, path=target)
    assert asked == ["/a.tsv"]
    assert capfd.readouterr() == ("", "")


def test_another_file_than_expected_is_refused_and_not_kept(server, tmp_path):
    url, folder, _ = server
    (folder / "a.tsv").write_bytes(b"<html>please log in</html>")
    target = tmp_path / "data" / "a.tsv"
    with pytest.raises(ValueError, match=f"a.tsv is not the expected file.*{SHA256}"):
        fetch(url + "a.tsv", sha256=SHA256, path=target)
    assert list(target.parent.iterdir()) == []


def test_unknown_hash_is_noted_in_the_log(server, tmp_path, caplog):
    url, folder, _ = server
    (folder / "a.tsv").write_bytes(CONTENT)
    with caplog.at_level(logging.INFO, logger="hggep_sc"):
        fetch(url + "a.tsv", sha256=None, path=tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_bytes() == CONTENT
    assert "a.tsv" in caplog.text
    assert "SHA-256 is not known" in caplog.text


def test_a_damaged_local_file_is_named_and_left(server, tmp_path):
    url, folder, asked = server
    (folder / "a.tsv").write_bytes(CONTENT)
    target = tmp_path / "a.tsv"
    target.write_bytes(CONTENT[:5])
    with pytest.raises(ValueError, match=r"a\.tsv is not the expected file.*delete it"):
        fetch(url + "a.tsv", sha256=SHA256, path=target)
    assert target.read_bytes() == CONTENT[:5]
    assert asked == []


def test_offline_says_which_file_belongs_where(unreachable, tmp_path):
    with pytest.raises(ConnectionError, match=r"a\.tsv is not in .*data.*HGGEP_DATASETDIR") as error:
        fetch(unreachable + "a.tsv", sha256=SHA256, path=tmp_path / "data" / "a.tsv")
    assert str(tmp_path / "data") in str(error.value)
    assert error.value.__suppress_context__
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_to_is_named_and_left(server, tmp_path, monkeypatch):
    url, folder, asked = server
    (folder / "a.tsv").write_bytes(CONTENT)
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr(settings, "dataset_dir", data)
    monkeypatch.setattr(_fetch.os, "access", lambda path, _: path != data)  # root may write anywhere
    with pytest.raises(
        OSError, match=r"nothing can be written to that folder.* a folder that holds mob/a\.tsv"
    ) as error:
        fetch(url + "a.tsv", sha256=SHA256, path=data / "mob" / "a.tsv")
    assert error.value.__context__ is None
    assert list(data.iterdir()) == asked == []


def test_a_file_in_the_place_of_the_folder(server, tmp_path):
    url, *_ = server
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(OSError, match="nothing can be written to that folder"):
        fetch(url + "a.tsv", sha256=SHA256, path=tmp_path / "data" / "a.tsv")


def test_a_file_the_server_does_not_have(server, tmp_path):
    url, _, _ = server
    with pytest.raises(OSError, match=r"a\.tsv is not in .*404") as error:
        fetch(url + "a.tsv", sha256=SHA256, path=tmp_path / "a.tsv")
    assert not isinstance(error.value, ConnectionError)
    assert not (tmp_path / "a.tsv").exists()


def test_gzipped_files_are_checked_by_what_they_hold(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(CONTENT, mtime=5))
    check(path, SHA256, unpacked=True)
    with pytest.raises(ValueError, match="unpacked content"):
        check(path, hashlib.sha256(b"other").hexdigest(), unpacked=True)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        check(path, SHA256, unpacked=True)


def test_registry_names_each_file_once_with_a_sha256():
    known = _fetch.registry()
    assert len(known) == 5 * 4 + 3 * 3
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in known.values())


def _her2st_upstream(folder, name, image="odd name_HE.jpg"):
    """One tiny section in the upstream layout; returns the paths written."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    grid = [(x, y) for x in range(2, 6) for y in range(3, 7)]
    names = [f"{x}x{y}" for x, y in grid]
    counts = pd.DataFrame(np.arange(48).reshape(16, 3), index=names, columns=["G1", "G2", "G3"])
    spots = pd.DataFrame(grid, columns=["x", "y"])
    spots = spots.assign(new_x=spots.x, new_y=spots.y, pixel_x=10.0 * spots.x, pixel_y=10.0 * spots.y, selected=1)
    clusters = pd.DataFrame({"label": range(16), "x": spots.x + 0.2, "y": spots.y - 0.2})
    files = {
        f"data/ST-cnts/{name}.tsv.gz": lambda path: counts.to_csv(path, sep="\t"),
        f"data/ST-spotfiles/{name}_selection.tsv": lambda path: spots.to_csv(path, sep="\t", index=False),
        f"res/ST-cluster/lbl/{name}-cluster-annotation.tsv.gz": lambda path: clusters.to_csv(path, sep="\t"),
        f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv": lambda path: (
            clusters.iloc[:5].assign(label="invasive cancer").to_csv(path, sep="\t")
        ),
        f"data/ST-imgs/{name[0]}/{name}/{image}": lambda path: Image.new("RGB", (80, 90), "white").save(path),
    }
    for path, write in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write(folder / path)
    return sorted(files)


def test_a_section_of_unknown_hash_is_downloaded_whole(server, tmp_path, monkeypatch):
    url, folder, asked = server
    written = _her2st_upstream(folder / "raw", "A1", image="odd-name_HE.jpg")
    listing = folder / "api" / "data" / "ST-imgs" / "A"
    listing.mkdir(parents=True)
    (listing / "A1").write_text('[{"name": "odd-name_HE.jpg"}, {"name": ".gitkeep"}]')
    monkeypatch.setattr(_her2st, "FILES_URL", url + "raw/")
    monkeypatch.setattr(_her2st, "LISTING_URL", url + "api/")
    monkeypatch.setattr(settings, "dataset_dir", tmp_path / "data")
    section = _her2st.her2st("A1")["A1"]
    got = sorted(str(path.relative_to(tmp_path / "data" / "her2st")) for path in (tmp_path / "data").rglob("*.*"))
    assert got == written
    assert section.obs["cluster"].astype(int).tolist() == list(range(16))
    assert section.obs["region"].astype(object).fillna("none").tolist() == ["invasive cancer"] * 5 + ["none"] * 11
    asked.clear()
    again = _her2st.her2st(["A1"])["A1"]
    assert asked == []
    assert (again.X != section.X).nnz == 0


def test_missing_pathologist_labels_do_not_stop_a_section(unreachable, tmp_path, monkeypatch, warned):
    _her2st_upstream(tmp_path / "her2st", "A1")
    (tmp_path / "her2st/data/ST-pat/lbl/A1_labeled_coordinates.tsv").unlink()
    monkeypatch.setattr(_her2st, "FILES_URL", unreachable)
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    section = _her2st.her2st(["A1"])["A1"]
    assert "region" not in section.obs
    assert "without obs['region']" in warned.text


def test_image_of_unknown_name_offline(unreachable, tmp_path, monkeypatch):
    written = _her2st_upstream(tmp_path / "her2st", "D2")
    image = next(path for path in written if "ST-imgs" in path)
    (tmp_path / "her2st" / image).unlink()
    monkeypatch.setattr(_her2st, "LISTING_URL", unreachable)
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    with pytest.raises(ConnectionError, match=r"H&E image of section D2 is not in .*ST-imgs/D/D2.*HGGEP_DATASETDIR"):
        _her2st.her2st(["D2"])
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / "her2st" / image).with_name(name).touch()
    with pytest.raises(ValueError, match=r"several images \(one.jpg, two.jpg\)"):
        _her2st.her2st(["D2"])


def test_known_section_offline(unreachable, tmp_path, monkeypatch):
    monkeypatch.setattr(_mob, "FILES_URL", unreachable)
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    with pytest.raises(ConnectionError, match=r"alignment_table_MOB1\.tsv is not in"):
        _mob.mob(["MOB1"])
