"""What readers of Space Ranger's and Xenium's folders return is predicted as it is: the same by each, to rounding."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd

import hggep_sc as hggep
import space_ranger
from hggep_sc.errors import ScaleWarning
from hggep_sc.section import open_sections

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of squidpy's own docstrings
    import spatialdata_io
    import squidpy as sq

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

CPU = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def section(_synthetic):
    return _synthetic["S3"]


@pytest.fixture(scope="module")
def model(_synthetic):
    training = {name: _synthetic[name].copy() for name in ("S1", "S2")}
    return hggep.tl.fit(training, method="ridge", weights=None, genes=20, progress=False)


@pytest.fixture(scope="module")
def expected(section, model):
    """Prediction of the section that all folders are made of, at 1 um per px."""
    return hggep.tl.predict(section, model, copy=True, **CPU)[:, model.genes].layers["hggep"]


def predicted(data, model, names, **keywords):
    """Values of the spots of these names, and the record of the section."""
    result = hggep.tl.predict(data, model, copy=True, **CPU, **keywords)
    table = result if isinstance(result, ad.AnnData) else next(iter(result.tables.values()))
    record = {name: value[0] for name, value in table.uns["hggep"]["sections"].items()}
    return table[names, model.genes].layers["hggep"], record


def read(reader, folder, image):
    if reader == "squidpy":
        return sq.read.visium(folder, source_image_path=image)
    if reader == "scanpy":
        return sc.read_visium(folder, source_image_path=image)
    return spatialdata_io.visium(folder, dataset_id="A1", fullres_image_file=image)


class TestVisium:
    @pytest.mark.parametrize("version", [1, 2, 4])
    def test_any_reader_gives_the_same(self, section, model, expected, tmp_path, version, warned):
        image = space_ranger.visium(tmp_path / "outs", section, version)
        names = space_ranger.barcodes(section.n_obs)[::-1]
        found = {}
        for reader in ("squidpy", "scanpy", "spatialdata_io"):
            found[reader], record = predicted(read(reader, tmp_path / "outs", image), model, names)
            assert record["name"] == "A1"
            assert record["mpp_source"] == "spots"
            assert record["mpp"] == pytest.approx(1.0, rel=1e-3 if version == 1 else 1e-9)
            assert "hires" not in record["image"]
        for values in found.values():
            np.testing.assert_allclose(values, found["squidpy"], atol=1e-5)
            # version 1 lists whole px
            np.testing.assert_allclose(values, expected, atol=0.5 if version == 1 else 1e-5)
        assert warned.messages == []

    def test_trained_on_what_readers_give(self, section, tmp_path):
        image = space_ranger.visium(tmp_path / "outs", section)
        how = {"method": "ridge", "weights": None, "genes": 20, "progress": False}
        models = {
            name: hggep.tl.fit(read(name, tmp_path / "outs", image), **how) for name in ("squidpy", "spatialdata_io")
        }
        assert models["squidpy"].genes == models["spatialdata_io"].genes
        one, other = (hggep.tl.predict(section, each, copy=True, **CPU).layers["hggep"] for each in models.values())
        np.testing.assert_allclose(one, other, atol=1e-5)

    @pytest.mark.parametrize("reader", ["squidpy", "spatialdata_io"])
    def test_no_full_resolution_image(self, section, model, tmp_path, reader, warned):
        """The reduced copy is taken and said, at its own um per px."""
        space_ranger.visium(tmp_path / "outs", section)
        names = space_ranger.barcodes(section.n_obs)
        _, record = predicted(read(reader, tmp_path / "outs", None), model, names)
        assert "hires" in record["image"]
        assert record["mpp"] == pytest.approx(2.0)
        assert record["mpp_fullres"] == pytest.approx(1.0)
        assert "a reduced copy that shows less of the cells" in warned.text

    @pytest.mark.parametrize("reader", ["squidpy", "spatialdata_io"])
    def test_a_reduced_image_given_as_the_full_one_is_refused(self, section, model, tmp_path, reader):
        space_ranger.visium(tmp_path / "outs", section)
        copy = tmp_path / "outs" / "spatial" / "tissue_hires_image.png"
        data = read(reader, tmp_path / "outs", copy)
        with pytest.raises(
            ValueError, match=r"418 x 418 px; by the size .* it should be 836 x 836 px: it is a scan 0\.5 times"
        ):
            hggep.tl.predict(data, model, **CPU)

    def test_levels_that_a_reader_has_yet_to_compute_are_not_read(self, section, tmp_path):
        """They would be made of the finest by another filter than ours; once they are stored, they are read."""
        image = space_ranger.visium(tmp_path / "outs", section)
        sdata = read("spatialdata_io", tmp_path / "outs", image)
        sdata.write(tmp_path / "written.zarr")
        n_levels = {}
        for name, each in {"read": sdata, "written": sd.read_zarr(tmp_path / "written.zarr")}.items():
            (opened,) = open_sections(each)
            with opened.open_image() as opened_image:
                n_levels[name] = len(opened_image._levels)
        assert n_levels == {"read": 1, "written": 5}


class TestVisiumHD:
    @pytest.fixture(scope="class")
    def folder(self, section, tmp_path_factory):
        folder = tmp_path_factory.mktemp("hd")
        bins = space_ranger.bins_at((300.0, 320.0), section.var_names)
        return folder, space_ranger.visium_hd(folder, section, bins), bins

    def read(self, folder, image, **how):
        how = {"load_segmentations_only": False, "fullres_image_file": image, **how}
        return spatialdata_io.visium_hd(folder, dataset_id="A1", **how)

    @pytest.mark.parametrize(
        "how",
        [{}, {"bins_as_squares": False}, {"annotate_table_by_labels": True}],
        ids=["squares", "circles", "labels"],
    )
    def test_bins_in_any_form_give_the_same(self, folder, model, how):
        path, image, bins = folder
        plain = bins.copy()
        factors = {"microns_per_pixel": 1.0, "bin_size_um": 16.0, "spot_diameter_fullres": 16.0}
        plain.uns["spatial"] = {"A1": {"scalefactors": factors, "metadata": {"source_image_path": str(image)}}}
        expected, _ = predicted(plain, model, bins.obs_names)
        values, record = predicted(self.read(path, image, **how), model, bins.obs_names)
        np.testing.assert_allclose(values, expected, atol=1e-5)
        assert record["mpp"] == pytest.approx(1.0)
        assert record["spacing_um"] == pytest.approx(16.0)
        assert record["image"] == "images['A1_full_image']"

    @pytest.mark.parametrize("labels", [False, True])
    def test_bins_outside_the_image(self, section, model, tmp_path, labels, warned):
        """The first column lies beside it: said and predicted; as many as two of fourteen are refused."""
        for origin, refused in ((-10.0, False), (-26.0, True)):
            folder = tmp_path / f"{origin}"
            bins = space_ranger.bins_at((origin, 320.0), section.var_names, degrees=0.0)
            image = space_ranger.visium_hd(folder, section, bins)
            sdata = self.read(folder, image, annotate_table_by_labels=labels)
            if refused:
                with pytest.raises(ValueError, match=r"24 of 168 spots lie outside the image"):
                    hggep.tl.predict(sdata, model, **CPU)
                continue
            values, _ = predicted(sdata, model, bins.obs_names)
            assert np.isfinite(values).all()
            assert "12 of 168 spots lie outside the image" in warned.text


class TestXenium:
    ALIGNMENT = np.array(
        [[4.69, 0.33, 100.0], [-0.33, 4.69, 450.0], [0.0, 0.0, 1.0]]
    )  # px of 0.2125 um per px of the H&E

    @pytest.fixture(scope="class")
    def folder(self, section, tmp_path_factory):
        return space_ranger.xenium(tmp_path_factory.mktemp("xenium") / "outs", section, self.ALIGNMENT)

    @pytest.mark.parametrize("circles", [False, True])
    def test_cells_on_the_aligned_image(self, folder, section, model, circles, warned):
        """Cells, masks of 0.2125 um or circles, are spots, and their centroids in um tell the scale of the H&E."""
        parts = dict.fromkeys(
            ["cells_boundaries", "nucleus_boundaries", "transcripts", "morphology_focus", "morphology_mip"], False
        )
        sdata = spatialdata_io.xenium(folder, cells_as_circles=circles, **parts)
        mpp = np.hypot(4.69, 0.33) * space_ranger.XENIUM_PX
        (opened,) = open_sections(sdata)
        assert opened.mpp == pytest.approx(mpp, rel=1e-9 if circles else 1e-3)
        np.testing.assert_allclose(opened.xy, section.obsm["spatial"], atol=1e-6 if circles else 0.2)
        values, record = predicted(sdata, model, sdata["table"].obs_names)
        assert record["image"] == "images['he_image']"
        expected = hggep.tl.predict(section, model, mpp=mpp, copy=True, **CPU)[:, model.genes].layers["hggep"]
        np.testing.assert_allclose(values, expected, atol=1e-5 if circles else 0.3)
        assert not [found for found in warned.recorded if found.category is ScaleWarning]
