import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from PIL import Image

import hggep_sc as hggep
from helpers import CPU, TINY, alive, as_spatialdata, assert_same, bfloat16
from hggep_sc.prediction.chunks import chunks_with_halo
from small_networks import small_network


@pytest.fixture
def test_section(sections):
    return sections["S3"]


def predict(data, model, **keywords):
    return hggep.tl.predict(data, model, device="cpu", progress=False, **keywords)


class TestWrites:
    def test_slots(self, test_section, trained):
        counts = test_section.X.copy()
        assert predict(test_section, trained) is None
        layer = test_section.layers["hggep"]
        assert (layer.shape, layer.dtype) == (test_section.shape, np.float32)
        known = test_section.var_names.isin(trained.genes)
        assert np.array_equal(test_section.var["hggep_predicted"], known)
        assert np.isfinite(layer[:, known]).all()
        assert np.isnan(layer[:, ~known]).all()
        assert test_section.obsm["X_hggep"].shape == (40, TINY["width"])
        assert (counts != test_section.X).nnz == 0
        record = test_section.uns["hggep"]
        assert record["model"] == trained.id
        assert list(record["genes"]) == trained.genes
        assert list(record["sections"]["role"]) == ["held out"]
        assert record["sections"]["mpp"][0] == 1.0

    def test_is_what_the_model_gives(self, test_section, trained):
        """Columns are matched by name, whatever their order in the object."""
        shuffled = test_section[:, np.random.default_rng(1).permutation(test_section.n_vars)].copy()
        predict(test_section, trained)
        predict(shuffled, trained)
        a = test_section[:, trained.genes].layers["hggep"]
        assert np.array_equal(a, shuffled[:, trained.genes].layers["hggep"])
        (section,) = _open(test_section)
        assert np.array_equal(a, trained.predict(section, device="cpu")[0])

    def test_absolute_log_expression(self, test_section, trained):
        """The low-rank output is brought back to the genes' own level."""
        predict(test_section, trained)
        total = np.asarray(test_section.X.sum(1))
        observed = np.log1p(1e4 * test_section[:, trained.genes].X.toarray() / total).mean(0)
        predicted = test_section[:, trained.genes].layers["hggep"].mean(0)
        assert np.corrcoef(observed, predicted)[0, 1] > 0.8
        assert 0.5 < predicted.mean() / observed.mean() < 2

    def test_training_section_is_told_by_content(self, sections, trained):
        renamed = sections["S1"][::-1].copy()
        renamed.uns["spatial"] = {"other": renamed.uns["spatial"]["S1"]}
        predict(renamed, trained)
        assert list(renamed.uns["hggep"]["sections"]["role"]) == ["train"]

    def test_copy(self, test_section, trained):
        before = test_section.copy()
        copied = predict(test_section, trained, copy=True)
        assert_same(test_section, before)
        assert "hggep" in copied.layers

    def test_figures_of_an_earlier_prediction_go(self, test_section, trained):
        predict(test_section, trained)
        hggep.tl.evaluate(test_section)
        assert {"hggep_pcc", "hggep_rmse"} <= set(test_section.var)
        predict(test_section, trained)
        assert not {"hggep_pcc", "hggep_rmse"} & set(test_section.var)
        assert "metrics" not in test_section.uns["hggep"]

    def test_key_added(self, test_section, trained):
        predict(test_section, trained, key_added="mine")
        assert {"mine"} == set(test_section.layers)
        assert "X_mine" in test_section.obsm
        assert "mine_predicted" in test_section.var

    def test_survives_h5ad_and_zarr(self, test_section, trained, tmp_path):
        predict(test_section, trained)
        hggep.tl.evaluate(test_section)
        test_section.write_h5ad(tmp_path / "a.h5ad")
        test_section.write_zarr(tmp_path / "a.zarr")
        for again in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
            assert np.array_equal(again.layers["hggep"], test_section.layers["hggep"], equal_nan=True)
            assert list(again.uns["hggep"]["genes"]) == trained.genes
            assert hggep.get.prediction(again).shape == (40, 20)
            hggep.tl.evaluate(again)
            predict(again, trained)
            assert np.array_equal(again.layers["hggep"], test_section.layers["hggep"], equal_nan=True)

    def test_progress_counts_every_spot_once(self, sections, trained, capsys):
        for section in sections.values():
            hggep.tl.predict(section, trained, chunk_spots=16, progress=True, device="cpu")
            assert f"{section.n_obs}/{section.n_obs}" in capsys.readouterr().err


def _open(data):
    from hggep_sc.section import open_sections

    return open_sections(data)


class TestKindsOfInput:
    def test_spatialdata_gives_the_same(self, test_section, trained):
        sdata = as_spatialdata(test_section)
        predict(test_section, trained)
        predict(sdata, trained, mpp=1.0)
        table = sdata["table"]
        assert table.obs_names.tolist() != test_section.obs_names.tolist()
        ours = table[test_section.obs_names, trained.genes].layers["hggep"]
        assert np.abs(ours - test_section[:, trained.genes].layers["hggep"]).max() < 1e-5
        assert hggep.get.prediction(sdata).shape == (40, 20)

    def test_pyramid_gives_much_the_same(self, test_section, trained):
        """Patches are cut from a reduced level: other pixels by rounding, the same prediction by and large."""
        single, pyramid = as_spatialdata(test_section), as_spatialdata(test_section, scale_factors=[2, 2])
        for sdata in (single, pyramid):
            predict(sdata, trained, mpp=1.0)
        a, b = (sdata["table"][:, trained.genes].layers["hggep"] for sdata in (single, pyramid))
        spread = a.std(0).mean()
        assert np.abs(a - b).mean() < 0.1 * spread

    def test_training_on_spatialdata_gives_the_same(self, sections, trained):
        training = {name: as_spatialdata(sections[name]) for name in ("S1", "S2")}
        model = hggep.tl.fit(training, genes=trained.genes, config=TINY, mpp=1.0, **CPU)
        a = predict(sections["S3"], trained, copy=True)
        b = predict(sections["S3"], model, copy=True)
        # spots come in another order, so dropout and flips draw otherwise: alike, not equal
        r = np.corrcoef(a[:, trained.genes].layers["hggep"].ravel(), b[:, trained.genes].layers["hggep"].ravel())
        assert r[0, 1] > 0.95

    def test_spatialdata_survives_zarr(self, test_section, trained, tmp_path):
        sdata = as_spatialdata(test_section)
        predict(sdata, trained, mpp=1.0)
        sdata.write(tmp_path / "s.zarr")
        again = sd.read_zarr(tmp_path / "s.zarr")
        assert np.array_equal(again["table"].layers["hggep"], sdata["table"].layers["hggep"], equal_nan=True)

    def test_no_counts(self, test_section, trained):
        unsequenced = ad.AnnData(
            obs=test_section.obs[["array_col", "array_row"]],
            var=test_section[:, trained.genes].var,
            obsm={"spatial": test_section.obsm["spatial"]},
            uns={"spatial": test_section.uns["spatial"]},
        )
        predict(test_section, trained)
        predict(unsequenced, trained)
        assert unsequenced.X is None
        assert np.array_equal(unsequenced.layers["hggep"], test_section[:, trained.genes].layers["hggep"])
        assert list(unsequenced.uns["hggep"]["sections"]["role"]) == ["held out"]

    def test_several_sections_in_one_object(self, sections, trained):
        libraries = {}
        for name, section in sections.items():
            section.obs["section"] = name
            libraries |= section.uns["spatial"]
        stacked = ad.concat(sections, index_unique="-")[::-1].copy()
        stacked.uns["spatial"] = libraries
        predict(stacked, trained, library_key="section")
        assert dict(zip(*(stacked.uns["hggep"]["sections"][k] for k in ("name", "role")), strict=True)) == {
            "S1": "train",
            "S2": "train",
            "S3": "held out",
        }
        predict(sections["S3"], trained)
        part = stacked[stacked.obs["section"] == "S3"][::-1]
        assert np.allclose(part.layers["hggep"], sections["S3"].layers["hggep"], atol=1e-5, equal_nan=True)

    @pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
    def test_view(self, test_section, trained):
        view = test_section[5:]
        predict(view, trained)
        assert "hggep" in view.layers
        assert "hggep" not in test_section.layers

    def test_backed(self, test_section, trained, tmp_path):
        predict(test_section, trained)
        expected = test_section.layers.pop("hggep")
        test_section.write_h5ad(tmp_path / "b.h5ad")
        backed = ad.read_h5ad(tmp_path / "b.h5ad", backed="r")
        predict(backed, trained)
        assert np.array_equal(backed.layers["hggep"], expected, equal_nan=True)

    def test_spots_off_tissue_are_not_predicted(self, test_section, trained):
        test_section.obs["in_tissue"] = [0] * 4 + [1] * 36
        predict(test_section, trained)
        assert np.isnan(test_section.layers["hggep"][:4]).all()
        assert hggep.get.prediction(test_section).n_obs == 36

    def test_spots_without_counts_are_predicted(self, test_section, trained):
        matrix = test_section.X.tolil()
        matrix[3] = 0
        test_section.X = matrix.tocsr()
        predict(test_section, trained)
        assert np.isfinite(test_section[:, trained.genes].layers["hggep"]).all()

    def test_one_spot(self, test_section, trained):
        one = test_section[:1].copy()
        predict(one, trained)
        assert np.isfinite(one[:, trained.genes].layers["hggep"]).all()

    def test_slide_of_another_scale(self, test_section, trained, tmp_path):
        """The same tissue photographed at half the resolution is predicted much the same; taken as it is, it is not."""
        entry = test_section.uns["spatial"]["S3"]
        full = Image.open(entry["metadata"]["source_image_path"])
        full.resize((full.width // 2, full.height // 2), Image.Resampling.BOX).save(tmp_path / "half.png")
        half = test_section.copy()
        half.obsm["spatial"] = half.obsm["spatial"] / 2
        half.uns["spatial"]["S3"]["metadata"]["source_image_path"] = str(tmp_path / "half.png")
        del half.uns["spatial"]["S3"]["images"]["hires"]  # the copy is of the other photograph
        half.uns["spatial"]["S3"]["scalefactors"].pop("microns_per_pixel")
        wrong = predict(half, trained, mpp=1.0, copy=True)
        predict(half, trained, mpp=2.0)
        predict(test_section, trained)
        values = [x[:, trained.genes].layers["hggep"] for x in (test_section, half, wrong)]
        assert np.abs(values[0] - values[1]).mean() < 0.5 * np.abs(values[0] - values[2]).mean()

    def test_chunks(self, sections, trained):
        """More spots than a chunk holds: the network predicts the core of a chunk as if the chunk were the section."""
        whole, model = (
            hggep.HGGEP(trained.network, config, trained.genes, mpp=1.0, fingerprint=trained.fingerprint)
            for config in (trained.config, trained.config.replace(chunk_spots=20))
        )
        (section,) = _open(sections["S3"])
        chunks = chunks_with_halo(section.xy, np.ones(40, dtype=bool), 20)
        assert [(len(spots), core.sum()) for spots, core in chunks] == 4 * [(20, 10)]
        expression, _ = model.predict(section, device="cpu")
        for spots, core in chunks[:2]:
            alone, _ = whole.predict(_open(sections["S3"][spots].copy())[0], device="cpu")
            assert np.allclose(expression[spots[core]], alone[core], atol=1e-5)
        predict(sections["S3"], whole, chunk_spots=20)
        assert np.array_equal(sections["S3"][:, trained.genes].layers["hggep"], expression)

    def test_chunks_of_no_spots(self, test_section, trained):
        with pytest.raises(ValueError, match="chunk_spots=0 must be at least 1"):
            predict(test_section, trained, chunk_spots=0)

    def test_baselines_have_no_chunks(self, sections):
        mean = hggep.tl.fit(sections["S1"], method="gene_mean", genes=20, progress=False)
        with pytest.raises(ValueError, match=r"chunk_spots= is for method='hggep' .*: method='gene_mean'"):
            predict(sections["S3"], mean, chunk_spots=20)

    def test_batch_size_changes_nothing(self, test_section, trained):
        (section,) = _open(test_section)
        whole, _ = trained.predict(section, device="cpu")
        parts, _ = trained.predict(section, device="cpu", batch_size=7)
        assert np.allclose(whole, parts, atol=1e-5)

    def test_in_mixed_precision_as_on_a_gpu(self, test_section, trained, monkeypatch):
        (section,) = _open(test_section)
        single, _ = trained.predict(section, device="cpu")
        monkeypatch.setattr(hggep.settings, "encoder_precision", "bfloat16")
        monkeypatch.setattr("hggep_sc.prediction.chunks.mixed_precision", lambda device: bfloat16(device.type))
        (section,) = _open(test_section)  # of which no features are kept
        mixed, latent = trained.predict(section, device="cpu")
        assert mixed.dtype == latent.dtype == np.float32
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(single.T, mixed.T, strict=True)]
        assert min(r) > 0.99
        assert not np.array_equal(single, mixed)

    def test_average_flips_is_refused_where_the_encoder_is_frozen(self, test_section, trained):
        with pytest.raises(ValueError, match="average_flips=True is for networks that learn from pixels"):
            predict(test_section, trained, average_flips=True)

    def test_average_flips_ignores_mirroring(self, test_section, trained, tmp_path):
        """The prediction of a network of pixels, averaged over all symmetries, is that of the mirrored section."""
        learning, config = small_network("learning")
        alive(learning.encoder)
        genes = trained.genes[: len(learning.gene_mean)]
        network = hggep.HGGEP(learning, config, genes, mpp=trained.mpp, fingerprint=trained.fingerprint)
        mirrored = test_section.copy()
        entry = mirrored.uns["spatial"]["S3"]
        image = Image.open(entry["metadata"]["source_image_path"])
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
        entry["metadata"]["source_image_path"] = str(tmp_path / "mirrored.png")
        del entry["images"]["hires"]  # which is not mirrored
        # whole px positions, so that rounding to the pixel grid is mirrored too
        test_section.obsm["spatial"] = np.round(test_section.obsm["spatial"])
        mirrored.obsm["spatial"] = test_section.obsm["spatial"] * [-1, 1] + [image.width, 0]
        plain, averaged, by_default = (
            [
                predict(x, network, average_flips=how, copy=True)[:, network.genes].layers["hggep"]
                for x in (test_section, mirrored)
            ]
            for how in (False, True, None)
        )
        difference, without = (np.abs(a - b).max() for a, b in (averaged, plain))
        assert difference < 0.03 * without  # of px that are not whole
        np.testing.assert_array_equal(by_default, plain)  # spots are seen as they lie


class TestBadInput:
    @pytest.mark.parametrize(
        ("damage", "error", "message"),
        [
            (lambda a, d: a.uns.pop("spatial"), (ValueError, KeyError), "image"),
            (lambda a, d: a.obsm.pop("spatial"), (ValueError, KeyError), "obsm"),
            (lambda a, d: _corrupt(a, d), ValueError, "bad.png"),
            (lambda a, d: a.obsm.__setitem__("spatial", a.obsm["spatial"] * 30), ValueError, "scale"),
            (lambda a, d: a.obsm["spatial"].__setitem__((0, 0), np.nan), ValueError, "NaN"),
            (
                lambda a, d: a.obsm["spatial"].__setitem__(0, a.obsm["spatial"][1]),
                ValueError,
                "coordinates of another spot",
            ),
        ],
        ids=["no image", "no coordinates", "corrupt image", "outside", "NaN", "duplicates"],
    )
    def test_refused_and_unchanged(self, test_section, trained, tmp_path, damage, error, message):
        damage(test_section, tmp_path)
        before = test_section.copy()
        with pytest.raises(error, match=message):
            predict(test_section, trained)
        assert_same(test_section, before)

    def test_failure_halfway_leaves_the_object(self, sections, trained, monkeypatch):
        test_section = sections["S3"]
        predict(test_section, trained)
        before = test_section.copy()

        def broken(*args, **kwargs):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(trained.network, "decode", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            predict(test_section, trained)
        assert_same(test_section, before)

    def test_no_gene_in_common(self, test_section, trained):
        test_section.var_names = [f"ENSG{i:011d}" for i in range(test_section.n_vars)]
        with pytest.raises(ValueError, match="Ensembl"):
            predict(test_section, trained)

    def test_some_genes_missing(self, test_section, trained):
        part = test_section[:, [g for g in test_section.var_names if g != trained.genes[0]]].copy()
        predict(part, trained)
        assert part.var["hggep_predicted"].sum() == len(trained.genes) - 1

    def test_empty(self, test_section, trained):
        with pytest.raises(ValueError, match="spot"):
            predict(test_section[:0].copy(), trained)

    def test_layer_too_large(self, test_section, trained, monkeypatch):
        import psutil

        monkeypatch.setattr("hggep_sc.image._files.require_memory", lambda *_: None)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 100})())
        with pytest.raises(ValueError, match=r"GiB are free.*model\.genes"):
            predict(test_section, trained)

    def test_not_a_model(self, test_section):
        with pytest.raises(TypeError, match=r"tl\.fit"):
            predict(test_section, "model.hggep")

    def test_not_a_section(self, trained):
        with pytest.raises(TypeError, match="AnnData"):
            predict(np.zeros((3, 3)), trained)


def _corrupt(adata, folder):
    path = folder / "bad.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n not really")
    adata.uns["spatial"]["S3"]["metadata"]["source_image_path"] = str(path)
