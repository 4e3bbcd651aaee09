"""Results as files for Seurat and QuPath: read back by Scanpy, squidpy, gzip and shapely, place by place."""

import gzip
import json

import geopandas
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
from matplotlib.colors import to_rgb
from PIL import Image

import hggep_sc as hggep
from helpers import as_spatialdata

CPU = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def _predicted(_synthetic, trained):
    """S3 with a prediction, two of its spots outside the tissue, and three domains."""
    section = _synthetic["S3"].copy()
    section.obs["in_tissue"] = (np.arange(section.n_obs) >= 2).astype(int)
    section.var["gene_ids"] = [f"ENSG{i:05d}" for i in range(section.n_vars)]
    hggep.tl.predict(section, trained, **CPU)
    hggep.tl.domains(section, n_domains=3)
    return section


@pytest.fixture
def predicted(_predicted):
    return _predicted.copy()


@pytest.fixture
def pair(_predicted, trained):
    """Two sections in one object."""
    import anndata as ad

    other = _predicted.copy()
    other.uns["spatial"] = {"other": other.uns["spatial"]["S3"]}
    both = ad.concat({"S3": _predicted, "other": other}, label="library", index_unique="-", uns_merge="unique")
    del both.layers["hggep"], both.obsm["X_hggep"], both.uns["hggep"]
    hggep.tl.predict(both, trained, library_key="library", overwrite=True, **CPU)
    return both


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def expected_of(section, genes):
    return section[section.obs["in_tissue"] == 1, genes]


class TestTo10x:
    """Seurat's `Load10X_Spatial` reads the HDF5 file by `Read10X_h5`, and `spatial/` by `Read10X_Image`."""

    def test_the_layout_is_that_of_space_ranger(self, predicted, trained, tmp_path):
        hggep.interop.to_10x(predicted, tmp_path / "outs")
        found = sorted(str(file.relative_to(tmp_path / "outs")) for file in tmp_path.rglob("*") if file.is_file())
        assert found == [
            "filtered_feature_bc_matrix.h5",
            "filtered_feature_bc_matrix/barcodes.tsv.gz",
            "filtered_feature_bc_matrix/features.tsv.gz",
            "filtered_feature_bc_matrix/matrix.mtx.gz",
            "spatial/scalefactors_json.json",
            "spatial/tissue_hires_image.png",
            "spatial/tissue_lowres_image.png",
            "spatial/tissue_positions.csv",
        ]
        with h5py.File(tmp_path / "outs" / "filtered_feature_bc_matrix.h5") as file:
            matrix = file["matrix"]
            assert {"barcodes", "data", "indices", "indptr", "shape", "features"} == set(matrix)
            assert {"id", "name", "feature_type", "genome", "_all_tag_keys"} == set(matrix["features"])
            assert matrix["shape"][:].tolist() == [20, 38]
            assert len(matrix["indptr"]) == 39
        with gzip.open(tmp_path / "outs" / "filtered_feature_bc_matrix" / "features.tsv.gz", "rt") as lines:
            first = lines.readline().rstrip("\n").split("\t")
        gene = expected_of(predicted, predicted.var["hggep_predicted"]).var_names[0]
        assert first == [predicted.var.loc[gene, "gene_ids"], gene, "Gene Expression"]
        factors = json.loads((tmp_path / "outs" / "spatial" / "scalefactors_json.json").read_text())
        needed = {"spot_diameter_fullres", "fiducial_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef"}
        assert needed < set(factors)

    def test_read_back(self, predicted, trained, tmp_path):
        import squidpy as sq

        hggep.interop.to_10x(predicted, tmp_path / "outs")
        expected = expected_of(predicted, trained.genes)
        text = sc.read_10x_mtx(tmp_path / "outs" / "filtered_feature_bc_matrix")
        spatial = sq.read.visium(tmp_path / "outs")
        assert list(spatial.uns["spatial"]) == ["S3"]
        for table in (text, spatial):
            assert list(table.obs_names) == list(expected.obs_names)
            found = table[:, trained.genes].X.toarray()
            np.testing.assert_allclose(found, expected.layers["hggep"], rtol=1e-6)
        np.testing.assert_allclose(spatial.obsm["spatial"], expected.obsm["spatial"], atol=1e-9)
        for column in ("array_row", "array_col"):
            assert (spatial.obs[column] == expected.obs[column]).all()
        entry = spatial.uns["spatial"]["S3"]
        assert entry["scalefactors"]["microns_per_pixel"] == 1.0
        assert entry["scalefactors"]["spot_diameter_fullres"] == 55.0
        pixels = np.asarray(Image.open(predicted.uns["spatial"]["S3"]["metadata"]["source_image_path"]))
        for name, copy in entry["images"].items():
            assert copy.shape[1] == pytest.approx(entry["scalefactors"][f"tissue_{name}_scalef"] * pixels.shape[1])
            assert max(copy.shape) <= {"hires": 2000, "lowres": 600}[name]

    def test_coordinates_of_a_reduced_copy_are_those_of_the_full_image(self, predicted, trained, tmp_path):
        entry = predicted.uns["spatial"]["S3"]
        pixels = np.asarray(Image.open(entry["metadata"].pop("source_image_path")).convert("RGB"))
        entry["images"] = {"hires": pixels[::2, ::2]}
        entry["scalefactors"] |= {"tissue_hires_scalef": 0.5}
        hggep.tl.predict(predicted, trained, **CPU)
        hggep.interop.to_10x(predicted, tmp_path / "outs")
        positions = pd.read_csv(tmp_path / "outs" / "spatial" / "tissue_positions.csv", index_col="barcode")
        found = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
        np.testing.assert_allclose(found, expected_of(predicted, trained.genes).obsm["spatial"])
        factors = json.loads((tmp_path / "outs" / "spatial" / "scalefactors_json.json").read_text())
        assert factors["spot_diameter_fullres"] == pytest.approx(55.0)
        assert factors["tissue_hires_scalef"] == pytest.approx(0.5)

    def test_one_of_several_sections(self, pair, trained, tmp_path):
        with pytest.raises(ValueError, match=r"none is named of 'S3', 'other': name one by `section=`"):
            hggep.interop.to_10x(pair, tmp_path / "outs")
        hggep.interop.to_10x(pair, tmp_path / "outs", section="other")
        names = sc.read_10x_mtx(tmp_path / "outs" / "filtered_feature_bc_matrix").obs_names
        assert len(names) == 38
        assert names.str.endswith("-other").all()

    def test_nothing_is_lost(self, predicted, tmp_path):
        folder = tmp_path / "outs"
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="choose another path, or overwrite=True"):
            hggep.interop.to_10x(predicted, folder)
        with pytest.raises(FileExistsError, match="none of what is written here"):
            hggep.interop.to_10x(predicted, folder, overwrite=True)
        assert names_in(folder) == ["mine.txt"]
        hggep.interop.to_10x(predicted, tmp_path / "other")
        hggep.interop.to_10x(predicted, tmp_path / "other", overwrite=True)
        with pytest.raises(KeyError, match="no prediction 'none'"):
            hggep.interop.to_10x(predicted, tmp_path / "third", key="none")
        assert names_in(tmp_path) == ["other", "outs"]

    def test_what_cannot_be_written_leaves_nothing(self, predicted, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("hggep_sc.interop._tenx._write_places", full)  # the last of three
        with pytest.raises(OSError, match=r"could not be written, and is as it was before.*No space left"):
            hggep.interop.to_10x(predicted, tmp_path / "outs")
        assert names_in(tmp_path) == []


class TestToQupath:
    def read(self, path):
        regions = geopandas.read_file(path)
        content = json.loads(path.read_text())
        assert content["type"] == "FeatureCollection"
        return regions.set_index("name").geometry, {
            feature["properties"]["name"]: feature["properties"] for feature in content["features"]
        }

    def check(self, regions, xy, domains):
        """Each spot lies in its domain alone; domains do not overlap, and leave no gaps between spots."""
        assert set(regions.index) == set(domains.dropna())
        for (x, y), domain in zip(xy, domains, strict=True):
            holding = [name for name, region in regions.items() if region.contains(shapely.Point(x, y))]
            assert holding == ([] if pd.isna(domain) else [domain])
        assert regions.is_valid.all()
        together = shapely.union_all(regions.to_numpy())
        assert together.area == pytest.approx(shapely.area(regions.to_numpy()).sum(), rel=1e-3)
        return together

    def test_domains(self, predicted, tmp_path):
        plt.close(hggep.pl.domains(predicted, "hggep_domain")[0].figure)  # which writes the colours
        hggep.interop.to_qupath(predicted, tmp_path / "domains.geojson")
        regions, properties = self.read(tmp_path / "domains.geojson")
        domains = predicted.obs["hggep_domain"]
        xy = predicted.obsm["spatial"]
        together = self.check(regions, xy[2:], domains[2:])
        middle = np.median(xy, axis=0)
        assert together.contains(shapely.Point(*middle).buffer(100))
        far = shapely.distance(together, shapely.points(xy[2:])).max()
        assert far == 0
        assert together.difference(shapely.union_all(shapely.buffer(shapely.points(xy), 76))).area < 1
        for name, shade in zip(domains.cat.categories, predicted.uns["hggep_domain_colors"], strict=True):
            assert properties[name]["objectType"] == "annotation"
            classification = properties[name]["classification"]
            assert classification["name"] == name
            np.testing.assert_allclose(classification["color"], 255 * np.array(to_rgb(shade)), atol=0.5)

    def test_any_column_and_a_spatialdata(self, sections, trained, tmp_path):
        """In px of the image's finest level; colours where none are kept are those that plots would take."""
        sdata = as_spatialdata(sections["S3"])
        table = sdata["table"]
        table.obs["label"] = np.where(table.obs["region"] == table.obs["region"].iloc[0], "this", None)
        hggep.interop.to_qupath(sdata, tmp_path / "one.geojson", column="label")
        regions, properties = self.read(tmp_path / "one.geojson")
        xy = sections["S3"][table.obs_names].obsm["spatial"]
        self.check(regions, xy, table.obs["label"])
        assert properties["this"]["classification"]["color"] == [0, 114, 178]  # Okabe and Ito's blue

    def test_one_of_several_sections(self, pair, tmp_path):
        how = {"column": "region", "library_key": "library"}
        with pytest.raises(ValueError, match=r"none is called 'S9' of 'S3', 'other'"):
            hggep.interop.to_qupath(pair, tmp_path / "a.geojson", section="S9", **how)
        hggep.interop.to_qupath(pair, tmp_path / "a.geojson", section="other", **how)
        regions, _ = self.read(tmp_path / "a.geojson")
        of_other = pair[(pair.obs["library"] == "other") & (pair.obs["in_tissue"] == 1)]
        self.check(regions, of_other.obsm["spatial"], of_other.obs["region"].astype(str))

    def test_refused(self, predicted, tmp_path):
        with pytest.raises(KeyError, match="obs has no column 'none'"):
            hggep.interop.to_qupath(predicted, tmp_path / "a.geojson", column="none")
        predicted.obs["empty"] = pd.Categorical([None] * predicted.n_obs)
        with pytest.raises(ValueError, match=r"obs\['empty'\] is empty at the 38 spots"):
            hggep.interop.to_qupath(predicted, tmp_path / "a.geojson", column="empty")
        assert names_in(tmp_path) == []
        (tmp_path / "slide.svs").write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            hggep.interop.to_qupath(predicted, tmp_path / "slide.svs", overwrite=True)
        hggep.interop.to_qupath(predicted, tmp_path / "a.geojson")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            hggep.interop.to_qupath(predicted, tmp_path / "a.geojson")
        hggep.interop.to_qupath(predicted, tmp_path / "a.geojson", overwrite=True)
