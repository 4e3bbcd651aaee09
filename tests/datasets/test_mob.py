"""Mouse olfactory bulb: packed or plain counts, spots under tissue, scale from the array."""

import gzip
import shutil

import numpy as np
import pandas as pd
import pytest

from hggep_sc import datasets, settings


@pytest.fixture
def section(shared, monkeypatch):
    monkeypatch.setattr(settings, "dataset_dir", shared / "data")
    return datasets.mob(["MOB1"])["MOB1"]


def test_spots_under_tissue_with_their_counts(section, shared):
    counts = pd.read_csv(shared / "data/mob/MOB1.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(shared / "data/mob/alignment_table_MOB1.tsv", sep="\t").query("selected == 1")
    assert section.shape == (379, 1000)
    assert section.var_names[0] == "ENSMUSG00000064339.1"
    assert set(section.obs_names) == set(spots.x.astype(str) + "x" + spots.y.astype(str))
    assert section.obs_names.tolist() == [name for name in counts.index if name in set(section.obs_names)]
    np.testing.assert_array_equal(section.X.toarray(), counts.loc[section.obs_names].to_numpy())
    expected = spots.set_index(["x", "y"]).loc[list(zip(section.obs.array_col, section.obs.array_row, strict=True))]
    np.testing.assert_array_equal(section.obsm["spatial"], expected[["pixel_x", "pixel_y"]])


def test_image_as_it_is_and_scale(section, shared):
    library = section.uns["spatial"]["MOB1"]
    assert library["images"]["hires"].shape == (1905, 1905, 3)
    assert library["scalefactors"]["tissue_hires_scalef"] == 1
    assert library["metadata"]["source_image_path"] == str(shared / "data/mob/MOB1.jpg")
    # two steps of the array are 200 um: 43 px along x, 48 px along y
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / np.sqrt(43.24 * 48.1), rel=0.01)


def test_plain_counts_serve_as_well(section, shared, tmp_path, monkeypatch):
    (tmp_path / "mob").mkdir()
    for name in ("alignment_table_MOB1.tsv", "MOB1.jpg"):
        shutil.copyfile(shared / "data/mob" / name, tmp_path / "mob" / name)
    plain = tmp_path / "mob" / "MOB1.tsv"
    plain.write_bytes(gzip.decompress((shared / "data/mob/MOB1.tsv.gz").read_bytes()))
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    again = datasets.mob("MOB1")["MOB1"]
    assert (again.X != section.X).nnz == 0
    plain.write_bytes(plain.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"MOB1\.tsv is not the expected file"):
        datasets.mob("MOB1")


def test_packed_counts_are_checked_by_their_content(shared, tmp_path, monkeypatch):
    shutil.copytree(shared / "data/mob", tmp_path / "mob")
    packed = tmp_path / "mob" / "MOB1.tsv.gz"
    content = gzip.decompress(packed.read_bytes())
    packed.unlink()
    packed.write_bytes(gzip.compress(content, 1))  # other bytes, same content
    monkeypatch.setattr(settings, "dataset_dir", tmp_path)
    assert datasets.mob(["MOB1"])["MOB1"].n_obs == 379
    packed.write_bytes(gzip.compress(content + b"1x1\n", 1))
    with pytest.raises(ValueError, match="unpacked content"):
        datasets.mob(["MOB1"])


def test_unknown_section():
    with pytest.raises(ValueError, match=r"No section 'MOB9'.*MOB1, MOB2, MOB3, MOB4"):
        datasets.mob(["MOB9"])
