"""Files of others, and h5ad files on a full disk. Models' files: `test_storage.py`."""

import os
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import assert_same
from hggep_sc.storage.files import read_regular, require_plain_h5ad, write_h5ad


def a_table():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"kind": ["a", "b", "a", "b"]}, index=list("pqrs"))
    table = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (4, 3)).astype(np.float32)), obs=obs)
    table.layers["predicted"] = rng.normal(size=(4, 3)).astype(np.float32)
    table.obsm["spatial"] = rng.normal(size=(4, 2))
    table.uns["hggep"] = {"genes": np.array(["A", "B"], dtype=object), "seed": 3, "scale": {"log": True}}
    table.raw = table.copy()
    return table


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_written_as_anndata_writes(tmp_path, options):
    write_h5ad(a_table(), tmp_path / "ours.h5ad", **options)
    a_table().write_h5ad(tmp_path / "theirs.h5ad", **options)
    ours, theirs = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    assert_same(ours, theirs)
    assert_same(ours.raw.to_adata(), theirs.raw.to_adata())
    require_plain_h5ad(tmp_path / "ours.h5ad")


@pytest.mark.parametrize("limit", [100, 30_000])
def test_a_full_disk_is_an_oserror_and_python_ends_in_peace(tmp_path, limit):
    """As large as a file may get stands in for the disk. HDF5 by itself crashes at Python's end."""
    script = f"""
import resource
import anndata as ad, numpy as np
from pathlib import Path
from hggep_sc.storage.files import write_h5ad
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, hard))
table = ad.AnnData(np.random.default_rng(0).normal(size=(200, 50)))
for options in ({{}}, {{"compression": "gzip"}}):
    try:
        write_h5ad(table, Path({str(tmp_path)!r}) / "x", **options)
    except OSError as error:
        print("OSError", error.errno)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["OSError", "27"] * 2, done.stderr
    assert done.returncode == 0


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "file") == b"content"
    assert read_regular(tmp_path / "file", 7) == b"content"
    for name, message in {"pipe": "no regular file", "link": "is a link", ".": "no regular file"}.items():
        with pytest.raises(ValueError, match=message):
            read_regular(tmp_path / name)
    with pytest.raises(ValueError, match="has 7 bytes, not the 8"):
        read_regular(tmp_path / "file", 8)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "gone")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external link", "is a link"),
        ("soft link", "is a link"),
        ("external data", "lies in another file"),
        ("virtual", "lies in another file"),
        ("huge", "takes 37252.9 GiB"),
        ("circle", "is there twice"),
        ("pipe", "no regular file"),
    ],
)
def test_h5ad_files_that_name_others_or_fill_the_memory(tmp_path, kind, message):
    file = tmp_path / "x.h5ad"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        with h5py.File(file, "w") as made:
            group = made.create_group("layers")
            if kind == "external link":
                group["a"] = h5py.ExternalLink("/etc/hostname", "/x")
            elif kind == "soft link":
                group["a"] = h5py.SoftLink("/layers")
            elif kind == "external data":
                group.create_dataset("a", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])
            elif kind == "virtual":
                layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
                layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(4,))
                group.create_virtual_dataset("a", layout)
            elif kind == "huge":
                group.create_dataset("a", shape=(10**7, 10**6), dtype="f4", chunks=(1000, 1000))
            else:
                group["a"] = made["/"]
    with pytest.raises(ValueError, match=message):
        require_plain_h5ad(file)
