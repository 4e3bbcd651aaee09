import json
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from threadpoolctl import threadpool_limits

import helpers
import hggep_sc as hggep
from helpers import CPU, LEARNING, WAIT
from hggep_sc.features import slide, store
from hggep_sc.image import SectionImage
from hggep_sc.nn import HGGEPNetwork
from hggep_sc.nn.ensemble import networks_for, seen_by_each
from hggep_sc.nn.shufflenet import ShuffleNetV2
from hggep_sc.training import fit as module
from hggep_sc.training.checkpoint import read_checkpoint
from hggep_sc.training.plan import TrainingPlan


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_same_model(a, b):
    assert a.genes == b.genes
    assert a.id == b.id
    pd.testing.assert_frame_equal(a.history, b.history)
    for name, tensor in weights_of(a).items():
        assert torch.equal(tensor, b.network.state_dict()[name]), name


TINY = {**helpers.TINY, "cross_fit": False}  # whose fits without some sections are no part of what is tested here
TWO = {**TINY, "ensemble": 2}
TEN_GENES = {"genes": 10, **CPU}
encoders = pytest.mark.parametrize("encoder", [{}, LEARNING], ids=["frozen", "learning"])


def spots_to_describe(monkeypatch):
    """How many spots are given to be encoded, of a part at a time, and how many kinds of maps are made."""
    numbers, describe = [], store.describe_windows

    def noted(image, parts, fields, size, maps_of, **more):
        numbers.extend((len(xy), len(maps_of)) for xy in parts)
        return describe(image, parts, fields, size, maps_of, **more)

    monkeypatch.setattr(store, "describe_windows", noted)
    return numbers


@pytest.fixture
def training(sections):
    del sections["S3"]
    return sections


class TestReproducible:
    def test_seed_reproduces_bit_for_bit(self, training, trained):
        again = hggep.tl.fit(training, genes=20, config=helpers.TINY, **CPU)
        assert_same_model(trained, again)

    def test_seed_reproduces_an_encoder_that_learns(self, training):
        first, again = (
            hggep.tl.fit(training, genes=10, config={**TINY, **LEARNING, "epochs": 2}, **CPU) for _ in range(2)
        )
        assert_same_model(first, again)

    @encoders
    def test_what_is_learnt_from_may_lie_on_disk(self, training, monkeypatch, encoder):
        config = {**TINY, **encoder, "epochs": 1}
        in_memory = hggep.tl.fit(training, genes=10, config=config, **CPU)
        monkeypatch.setattr(hggep.settings, "patch_memory", 0)
        assert_same_model(hggep.tl.fit(training, genes=10, config=config, **CPU), in_memory)

    def test_another_seed_gives_another_model(self, training, trained):
        other = hggep.tl.fit(training, genes=20, config=TINY, seed=1, **CPU)
        assert other.id != trained.id

    def test_random_state_of_the_caller_is_left_alone(self, training):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 the caller's global state is the point
        random.seed(5)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        hggep.tl.fit(training, genes=10, config={**TINY, "epochs": 1}, **CPU)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        assert before[2] == random.getstate()

    @pytest.mark.parametrize("how", [{}, {"checkpoint_dir": "run"}, {"encoder": helpers.MeanColour()}])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_random_state_is_left_alone_where_a_fit_ends_early(self, training, monkeypatch, tmp_path, how, error):
        def fails(self, batch, step):
            torch.manual_seed(step)
            np.random.seed(step)  # noqa: NPY002 as a module of the user's might
            random.seed(step)
            raise error

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(TrainingPlan, "training_step", fails)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        with pytest.raises(error):
            hggep.tl.fit(training, config={**TINY, "epochs": 1}, **how, **TEN_GENES)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        assert before[2] == random.getstate()

    def test_the_callers_mode_of_gradients_is_left_alone(self, training, trained):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                again = hggep.tl.fit(training, genes=20, config=helpers.TINY, **CPU)
                assert not torch.is_grad_enabled()
                assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
            assert_same_model(trained, again)

    def test_inputs_are_not_changed(self, training):
        before = {name: section.copy() for name, section in training.items()}
        hggep.tl.fit(training, genes=10, config={**TINY, "epochs": 1}, **CPU)
        for name, section in training.items():
            assert (section.X != before[name].X).nnz == 0
            assert list(section.layers) == list(section.var) == []
            assert np.array_equal(section.obsm["spatial"], before[name].obsm["spatial"])

    def test_quiet(self, training, tmp_path, monkeypatch, capfd, recwarn):
        monkeypatch.chdir(tmp_path)
        hggep.tl.fit(training, genes=10, config={**TINY, "epochs": 1}, **CPU)
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")
        assert [str(w.message) for w in recwarn if "lightning" in w.filename] == []


class TestLearning:
    def test_history_has_every_term(self, trained):
        assert list(trained.history) == ["epoch", "loss", "mse", "zinb", "correlation"]
        assert trained.history["epoch"].tolist() == [0, 1, 2]
        settings = trained.config
        total = (
            trained.history["mse"]
            + settings.count_weight * trained.history["zinb"]
            + settings.correlation_weight * trained.history["correlation"]
        )
        assert np.allclose(trained.history["loss"], total, rtol=1e-5)

    @encoders
    def test_learns(self, training, encoder):
        """Without augmentation and dropout, the training spots' genes come to correlate."""
        still = {"flips": False, "stain_jitter": 0.0, "feature_shift": 0.0, "dropout": 0.0}
        long = {"epochs": 30, "learning_rate": 5e-3}
        model = hggep.tl.fit(training, genes=20, config={**TINY, **encoder, **still, **long}, **CPU)
        assert model.history["correlation"].iloc[0] > 0.9
        assert model.history["correlation"].iloc[-1] < 0.75

    @pytest.mark.parametrize(
        ("settings", "learnt"),
        [
            ({}, set()),
            ({"gem": True}, {"gem", "gem_scale"}),
            ({"cbam": True}, {"cbam", "cbam_scale"}),
            ({"backbone_learning_rate": 1e-3}, {"backbone"}),
        ],
    )
    def test_of_the_encoder_that_alone_learns_which_is_asked_to(self, training, settings, learnt):
        """Weights and batch statistics of the backbone too."""
        states, real = [], TrainingPlan.on_train_start

        def record(self):
            states.append({k: v.clone() for k, v in self.network.encoder.state_dict().items()})
            real(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingPlan, "on_train_start", record)
            model = hggep.tl.fit(training, genes=10, config={**TINY, **settings}, **CPU)
        (before,), after = states, model.network.encoder.state_dict()
        assert {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])} == learnt

    def test_a_frozen_encoder_sees_each_section_once(self, training, monkeypatch):
        """Epochs cost nothing more."""
        described, seen = spots_to_describe(monkeypatch), []
        loss = HGGEPNetwork.loss

        def recorded(self, batch, generator):
            seen.append((batch.patches, batch.features.shape))
            return loss(self, batch, generator)

        monkeypatch.setattr(HGGEPNetwork, "loss", recorded)
        hggep.tl.fit(training, genes=10, config=TINY, **CPU)
        assert described == 2 * [(40, 1)]  # sections
        assert seen == 6 * [(None, (40, 2, 48 + 96 + 192))]

    def test_training_drops_out_and_prediction_does_not(self, training):
        """The network has been in eval mode before, for the statistics of its features."""
        config = {**TINY, "feature_shift": 0.0, "epochs": 2}
        without, *twice = (
            hggep.tl.fit(training, genes=10, config={**config, "dropout": rate}, **CPU) for rate in (0.0, 0.5, 0.5)
        )
        assert not np.allclose(without.history["loss"], twice[0].history["loss"], rtol=1e-3)
        first, second = (hggep.tl.predict(training["S1"], model, device="cpu", copy=True) for model in twice)
        np.testing.assert_array_equal(first.layers["hggep"], second.layers["hggep"])

    def test_components_are_bounded_by_the_data(self, training):
        model = hggep.tl.fit(training, genes=5, config={**TINY, "n_components": 16, "epochs": 1}, **CPU)
        assert model.config.n_components == 5

    def test_spots_without_counts_teach_nothing(self, training):
        """Whatever the image shows at a spot without counts, the loss does not see it."""
        emptied = training["S1"]
        matrix = emptied.X.tolil()
        matrix[:10] = 0
        emptied.X = matrix.tocsr()
        seen = []

        def record(self, batch, generator):
            seen.append((len(batch.expression), len(batch.observed)))
            return real(self, batch, generator)

        real = HGGEPNetwork.loss
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HGGEPNetwork, "loss", record)
            hggep.tl.fit(training, genes=60, config={**TINY, "epochs": 1}, **CPU)
        assert sorted(seen) == [(40, 30), (40, 40)]

    @pytest.mark.parametrize("module", ["gem", "cbam", "vit", "ham", "lstm"])
    def test_every_module_can_be_left_out(self, training, module):
        modules = {"gem": True, "cbam": True, module: False}
        model = hggep.tl.fit(training, genes=10, config={**TINY, "epochs": 1, **modules}, **CPU)
        left = [name for name in ("GEM", "CBAM", "VIT", "HAM", "LSTM") if name != module.upper()]
        assert repr(model).splitlines()[1].endswith(" + ".join(left))

    def test_large_sections_go_in_chunks(self, training):
        model = hggep.tl.fit(training, genes=10, config={**TINY, "epochs": 1, "chunk_spots": 15}, **CPU)
        assert np.isfinite(model.history["loss"]).all()

    def test_genes_by_name_keep_their_order(self, training):
        names = ["TUM02", "STR01", "TUM01"]
        assert set(names) <= set(training["S1"].var_names)
        assert hggep.tl.fit(training, genes=names, config={**TINY, "epochs": 1}, **CPU).genes == names

    def test_config_object_replaces_the_preset(self, training):
        config = hggep.Config.from_preset("default", **{**TINY, "epochs": 1, "count_weight": 0.0})
        model = hggep.tl.fit(training, genes=10, config=config, normalize="panel", **CPU)
        assert model.scale.normalize == "panel"
        assert "zinb" not in model.history

    def test_several_sections_in_one_object(self, training, trained):
        libraries = {}
        for name, section in training.items():
            section.obs["section"] = name
            libraries |= section.uns["spatial"]
        stacked = ad.concat(training, index_unique="-")
        stacked.uns["spatial"] = libraries
        model = hggep.tl.fit(stacked, library_key="section", genes=20, config=helpers.TINY, **CPU)
        assert_same_model(model, trained)


class TestValidation:
    def test_section_by_name(self, sections):
        model = hggep.tl.fit(sections, genes=10, config=TINY, validation="S2", **CPU)
        assert model.history["validation_pcc"].notna().all()

    @encoders
    def test_validation_section_teaches_nothing(self, sections, encoder):
        """Other counts in the validation section: the weights of every epoch stay the same."""
        settings = {**TINY, **encoder, "epochs": 1}
        genes = sections["S1"].var_names[:10].tolist()
        first = hggep.tl.fit(sections, genes=genes, config=settings, validation="S2", **CPU)
        sections["S2"].X = sections["S2"].X[::-1].copy() * 3
        second = hggep.tl.fit(sections, genes=genes, config=settings, validation="S2", **CPU)
        assert first.id == second.id
        assert not np.allclose(first.history["validation_pcc"], second.history["validation_pcc"])

    def test_spatial_blocks(self, sections):
        model = hggep.tl.fit(sections, genes=10, config=TINY, validation=0.25, **CPU)
        assert model.history["validation_pcc"].notna().all()

    def test_best_epoch_is_kept(self, training, monkeypatch):
        """The score is rigged to peak in the second epoch: its weights come back, and training stops."""
        snapshots, scores = [], iter([0.1, 0.9, 0.2, 0.1, 0.0])

        def rigged(self):
            snapshots.append({k: v.clone() for k, v in self.network.state_dict().items()})
            self.log("validation_pcc", next(scores))

        monkeypatch.setattr(TrainingPlan, "on_validation_epoch_end", rigged)
        settings = {**TINY, "epochs": 5, "patience": 2}
        model = hggep.tl.fit(training, genes=10, config=settings, validation="S2", **CPU)
        assert len(model.history) == 4
        assert all(torch.equal(t, snapshots[1][n]) for n, t in model.network.state_dict().items())

    def test_fits_without_a_section_stop_at_the_best_epoch_of_the_same_schedule(self, sections, monkeypatch):
        """Rigged to peak in the second of five epochs: their rates are the first two epochs' of a one-cycle of five."""
        scores, rates = iter([0.1, 0.9, 0.2, 0.1, 0.0]), []
        real = TrainingPlan.training_step

        def watched(self, batch, step):
            if (self.current_epoch, step) == (0, 0):
                rates.append([])
            rates[-1].append(self.optimizers().param_groups[0]["lr"])
            return real(self, batch, step)

        monkeypatch.setattr(TrainingPlan, "training_step", watched)
        monkeypatch.setattr(
            TrainingPlan, "on_validation_epoch_end", lambda self: self.log("validation_pcc", next(scores))
        )
        config = {**TINY, "epochs": 5, "patience": 2, "cross_fit": True}
        model = hggep.tl.fit(sections, genes=10, config=config, validation="S2", **CPU)
        assert len(model.history) == 4
        _, *refits = rates
        assert len(refits) == 2
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        steps = len(refits[0]) // 2
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, model.config.learning_rate, total_steps=5 * steps)
        expected = []
        for _ in range(2 * steps):
            expected.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        for found in refits:
            np.testing.assert_allclose(found, expected)

    def test_validation_blocks_teach_nothing(self, training):
        """Other counts and genes in the held-out blocks: the chosen genes and the weights stay the same."""
        from hggep_sc.section import open_sections
        from hggep_sc.training.split import held_out_spots

        settings = {**TINY, "epochs": 1}
        first = hggep.tl.fit(training, genes=10, config=settings, validation=0.3, **CPU)
        for section, mask in zip(training.values(), held_out_spots(open_sections(training), 0.3, 0), strict=True):
            counts = section.X.toarray()
            counts[mask] = counts[mask][:, ::-1] * np.arange(1, 61)
            section.X = scipy.sparse.csr_matrix(counts)
        second = hggep.tl.fit(training, genes=10, config=settings, validation=0.3, **CPU)
        assert first.genes == second.genes
        assert first.id == second.id

    def test_only_section_cannot_be_held_out(self, training):
        with pytest.raises(ValueError, match="only training section"):
            hggep.tl.fit({"S1": training["S1"]}, genes=10, config=TINY, validation="S1", **CPU)

    @pytest.mark.parametrize(("validation", "message"), [("S9", "S9"), (1.5, "between 0 and 1")])
    def test_refused(self, training, validation, message):
        with pytest.raises(ValueError, match=message):
            hggep.tl.fit(training, genes=10, config=TINY, validation=validation, **CPU)


class TestEnsemble:
    """`config.ensemble` networks, trained from seeds of their own."""

    def test_prediction_is_the_mean_of_fits_by_these_seeds(self, training):
        """Of embeddings, all of which every network sees."""
        for section in training.values():
            section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 6))
        how = {**TEN_GENES, "encoder": "X_emb"}
        seeds = 3, int(np.random.SeedSequence(3).generate_state(1)[0])
        both = hggep.tl.fit(training, config=TWO, seed=3, **how)
        one, other = (hggep.tl.fit(training, config=TINY, seed=seed, **how) for seed in seeds)
        predicted = [
            hggep.tl.predict(training["S1"], model, copy=True)[:, model.genes].layers["hggep"]
            for model in (both, one, other)
        ]
        np.testing.assert_allclose(predicted[0], (predicted[1] + predicted[2]) / 2, atol=1e-5)
        assert np.abs(predicted[1] - predicted[2]).max() > 1e-3
        pd.testing.assert_frame_equal(both.history, one.history)

    def test_each_network_sees_the_maps_of_one_resolution(self, training, tmp_path):
        """What a network sees is all of its features that move its prediction."""
        config = {name: value for name, value in TINY.items() if name != "ensemble"}
        model = hggep.tl.fit(training, config={**config, "epochs": 1}, **TEN_GENES)
        assert model.config.ensemble == 3
        assert [network.groups for network in model.network.networks] == [(48,), (96,), (192,)]
        features, positions = torch.randn(20, len(TINY["fields_um"]), 336), torch.rand(20, 2)
        alone = [
            network.decode(part, positions).expression
            for network, part in zip(model.network.networks, features.split([48, 96, 192], dim=2), strict=True)
        ]
        with torch.no_grad():
            torch.testing.assert_close(model.network.decode(features, positions).expression, sum(alone) / 3)
        model.save(tmp_path / "model")
        assert_same_model(hggep.HGGEP.load(tmp_path / "model"), model)

    @pytest.mark.parametrize(
        ("n_groups", "n", "seen"),
        [
            (5, 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
            (3, 5, [(0, 1), (1, 2), (2, 3), (0, 1), (1, 2)]),
            (5, 2, [(0, 2), (2, 5)]),
            (5, 1, [(0, 5)]),
            (1, 2, [(0, 1), (0, 1)]),
        ],
    )
    def test_groups_are_shared_out(self, n_groups, n, seen):
        assert seen_by_each(n_groups, n) == seen

    @pytest.mark.parametrize(("n_groups", "n"), [(1, 3), (2, 4), (3, 3), (5, 5), (13, 13)])
    def test_every_group_is_seen_as_often(self, n_groups, n):
        assert networks_for(n_groups) == n

    def test_one_of_before_networks_saw_parts(self, training, tmp_path):
        """Nothing is said in its manifest, and all of its networks see everything."""
        for section in training.values():
            section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 6))
        model = hggep.tl.fit(training, config={**TWO, "epochs": 1}, encoder="X_emb", **TEN_GENES)
        model.save(tmp_path / "model")
        manifest = tmp_path / "model" / "model.json"
        content = json.loads(manifest.read_text())
        assert content.pop("seen") == [[0, 1], [0, 1]]
        del content["checksum"]
        manifest.write_text(json.dumps(content))
        assert_same_model(hggep.HGGEP.load(tmp_path / "model"), model)

    def test_every_network_is_cross_fitted(self, training, monkeypatch):
        fits = []
        real = module.fit_network
        monkeypatch.setattr(
            module,
            "fit_network",
            lambda kept, *rest, **how: fits.append((how["run"].seed, len(kept))) or real(kept, *rest, **how),
        )
        hggep.tl.fit(training, config={**TWO, "epochs": 1, "cross_fit": True}, **TEN_GENES)
        second = fits[1][0]
        assert fits == [(0, 2), (second, 2), (0, 1), (second, 1), (0, 1), (second, 1)]

    def test_stopped_within_any_network(self, training, tmp_path, monkeypatch):
        how = {**TEN_GENES, "config": {**TWO, "epochs": 2, "cross_fit": True}, "validation": "S2"}
        whole = hggep.tl.fit(training, **how)
        real, steps = TrainingPlan.training_step, []

        def interrupted(self, batch, step):
            steps.append(step)
            if len(steps) % 4 == 0:  # which falls into each network in turn
                raise RuntimeError("power cut")
            return real(self, batch, step)

        monkeypatch.setattr(TrainingPlan, "training_step", interrupted)
        cuts, resumed = 0, None
        while resumed is None:
            try:
                resumed = hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", resume=cuts > 0, **how)
            except RuntimeError:
                cuts += 1
        assert cuts >= 3
        assert_same_model(whole, resumed)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, None),
            ({"preset": "paper"}, None),
            ({"preset": "published"}, None),
            ({"config": LEARNING}, "config.ensemble=None and config.linear=True"),
            ({"config": {**LEARNING, "ensemble": 3}}, "config.ensemble=3 and config.linear=True"),
            ({"config": {**LEARNING, "ensemble": 1}}, "config.ensemble=1 and config.linear=True"),
            ({"config": {**LEARNING, "ensemble": 3, "linear": False}}, "config.ensemble=3 and config.linear=False"),
            ({"config": {**LEARNING, "linear": False}}, None),
            ({"config": {**LEARNING, "ensemble": 1, "linear": False}}, None),
            ({"config": {**LEARNING, "ensemble": 1, "cross_fit": False}}, None),
        ],
    )
    def test_what_an_encoder_that_learns_leaves_unused_is_said(self, training, monkeypatch, warned, settings, said):
        def stop(*_, **__):
            raise RuntimeError("before sections are read")

        monkeypatch.setattr(module, "read_sections", stop)
        with pytest.raises(RuntimeError, match="before sections are read"):
            hggep.tl.fit(training, **settings, **TEN_GENES)
        found = [message for message in warned.messages if "an encoder that learns" in message]
        assert len(found) == (said is not None)
        assert all(said in message for message in found)

    def test_networks_whose_encoder_learns_are_none(self, training):
        model = hggep.tl.fit(training, config={**TWO, **LEARNING, "epochs": 1}, **TEN_GENES)
        assert model.config.ensemble == 1
        assert "2 networks" not in repr(model)

    def test_round_trip(self, training, tmp_path):
        model = hggep.tl.fit(training, config={**TWO, "epochs": 1}, **TEN_GENES)
        model.save(tmp_path / "model")
        loaded = hggep.HGGEP.load(tmp_path / "model")
        assert_same_model(model, loaded)
        assert "2 networks" in repr(loaded)
        before, after = (hggep.tl.predict(training["S1"], m, copy=True) for m in (model, loaded))
        np.testing.assert_array_equal(before.layers["hggep"], after.layers["hggep"])
        assert after.obsm["X_hggep"].shape[1] == 2 * TINY["width"]

    def test_a_manifest_of_before_there_were_ensembles(self, trained, tmp_path):
        trained.save(tmp_path / "model")
        manifest = tmp_path / "model" / "model.json"
        content = json.loads(manifest.read_text())
        del content["config"]["ensemble"], content["checksum"]
        manifest.write_text(json.dumps(content))
        assert_same_model(hggep.HGGEP.load(tmp_path / "model"), trained)


def embedded(section):
    section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 5))
    return section


class TestTwoAtOnce:
    """Fits in threads wait for each other; of two in one folder the second is refused."""

    def test_in_threads_as_one_after_another(self, training):
        how = {**TEN_GENES, "config": {**helpers.TINY, "epochs": 1, "patch_size": 16}}
        alone = {seed: hggep.tl.fit(training, seed=seed, **how) for seed in (0, 1)}
        before = torch.get_rng_state()
        with ThreadPoolExecutor(3) as threads:
            fits = {seed: threads.submit(hggep.tl.fit, training, seed=seed, **how) for seed in (0, 1)}
            ridge = threads.submit(hggep.tl.fit, training, method="ridge", weights=None, genes=10, progress=False)
            for seed, fit in fits.items():
                assert_same_model(alone[seed], fit.result())
        assert ridge.result().id == hggep.tl.fit(training, method="ridge", genes=10, **CPU).id
        assert torch.equal(before, torch.get_rng_state())

    def test_whatever_number_of_threads_another_library_has_set(self, training):
        """As Numba does, for the thread that it is called in."""
        how = {**TEN_GENES, "config": {**TINY, "epochs": 1}}
        alone = hggep.tl.fit(training, **how)
        before = torch.get_num_threads()
        with threadpool_limits(before + 2, user_api="openmp"):
            assert torch.get_num_threads() == before + 2
            seen = []
            with pytest.MonkeyPatch.context() as patch:
                step = TrainingPlan.training_step
                patch.setattr(
                    TrainingPlan,
                    "training_step",
                    lambda *given: seen.append(torch.get_num_threads()) or step(*given),
                )
                assert_same_model(alone, hggep.tl.fit(training, **how))
            assert torch.get_num_threads() == before + 2
        assert set(seen) == {before}

    @pytest.mark.parametrize(
        ("kind", "resume"), [("frozen", True), ("frozen", False), ("learning", False), ("embeddings", True)]
    )
    def test_in_one_folder_the_second_is_refused(self, training, tmp_path, monkeypatch, kind, resume):
        """At once, at every step of the first, and nothing of the first is touched."""
        training = {name: embedded(section) for name, section in training.items()}
        config = {**TINY, "epochs": 1, **(LEARNING if kind == "learning" else {})}
        how = {**TEN_GENES, "config": config, **({"encoder": "X_emb"} if kind == "embeddings" else {})}
        run = tmp_path / "run"
        step, put, refused = TrainingPlan.training_step, Path.replace, []

        def files():
            return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

        def second():
            before, message = files(), f"checkpoint_dir='{run}': another process or thread is at work on it"
            with pytest.raises(ValueError, match=message):
                hggep.tl.fit(training, seed=1, checkpoint_dir=run, resume=resume, **how)
            assert files() == before
            refused.append(len(before))

        monkeypatch.setattr(TrainingPlan, "training_step", lambda *given: second() or step(*given))
        monkeypatch.setattr(Path, "replace", lambda *given: second() or put(*given))
        first = hggep.tl.fit(training, checkpoint_dir=run, **how)
        monkeypatch.undo()
        assert len(refused) >= 4  # two steps, the mark, the checkpoint
        assert_same_model(first, hggep.tl.fit(training, **how))


class TestDiverged:
    """A training whose loss or weights are no numbers ends with an error."""

    @pytest.mark.parametrize(
        ("settings", "value"),
        [({}, np.nan), ({}, np.inf), ({"validation": 0.3}, np.nan), ({"config": LEARNING}, np.nan)],
    )
    def test_of_the_loss(self, training, tmp_path, monkeypatch, settings, value):
        """From the second epoch on; the checkpoint of the first stays, and goes on to the same end."""
        monkeypatch.setattr(TrainingPlan, "training_step", diverging(TrainingPlan.training_step, value))
        how = {**TEN_GENES, **settings, "config": {**TINY, **settings.get("config", {})}}
        message = (
            r"training on S1, S2 diverged in epoch 2 of 3 \(not finite: loss (nan|inf).*\), and there is no model: "
            r"lower config\.learning_rate \(now 0\.001\), clip gradients by config\.gradient_clip"
        )
        for resume in (False, True):
            with pytest.raises(RuntimeError, match=message):
                hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", resume=resume, **how)
        entries = read_checkpoint(tmp_path / "run" / "last.ckpt")
        assert entries["epoch"] == 0
        assert all(values.isfinite().all() for values in entries["state_dict"].values())

    def test_of_the_weights_in_the_last_step(self, training, tmp_path, monkeypatch):
        """The losses are numbers to the end."""
        step = torch.optim.AdamW.step

        def too_far(self, *given, **options):
            found = step(self, *given, **options)
            steps.append(1)
            if len(steps) == 6:
                self.param_groups[0]["params"][0].data.mul_(np.inf)
            return found

        steps = []
        monkeypatch.setattr(torch.optim.AdamW, "step", too_far)
        with pytest.raises(RuntimeError, match=r"diverged in epoch 3 of 3 \(not finite: [a-z0-9_.]+\)"):
            hggep.tl.fit(training, config=TINY, checkpoint_dir=tmp_path / "run", **TEN_GENES)
        assert read_checkpoint(tmp_path / "run" / "last.ckpt")["epoch"] == 1

    def test_of_a_fit_without_a_section(self, training, monkeypatch):
        step = TrainingPlan.training_step
        networks = []

        def third(self, batch, number):
            if self not in networks:
                networks.append(self)
            found = step(self, batch, number)
            return {**found, "loss": found["loss"] * np.nan} if len(networks) == 3 else found

        monkeypatch.setattr(TrainingPlan, "training_step", third)
        with pytest.raises(RuntimeError, match="training on S1 diverged in epoch 1 of 3"):
            hggep.tl.fit(training, config=helpers.TINY, **TEN_GENES)

    def test_by_a_learning_rate_that_is_too_high(self, training):
        with pytest.raises(RuntimeError, match=r"diverged .*lower config\.learning_rate \(now 1e\+06\)"):
            hggep.tl.fit(training, config={**TINY, "learning_rate": 1e6, "epochs": 5}, **TEN_GENES)

    def test_a_linear_path_and_a_ridge_that_cannot_be_learnt(self, training, monkeypatch):
        from hggep_sc.training.selection import Training

        real = Training.of
        monkeypatch.setattr(Training, "of", lambda features, *rest: real(features * np.float32(np.nan), *rest))
        message = "features to learn from are NaN or infinite: look for values far out of the ordinary"
        with pytest.raises(ValueError, match=message):
            hggep.tl.fit(training, config={**helpers.TINY, "epochs": 1}, **TEN_GENES)
        with pytest.raises(ValueError, match=message):
            hggep.tl.fit(training, method="ridge", **TEN_GENES)


def diverging(step, value):
    """A training step whose loss is no number from the second epoch on."""

    def diverges(self, batch, number):
        found = step(self, batch, number)
        return {**found, "loss": found["loss"] * value} if self.current_epoch > 0 else found

    return diverges


class TestCheckpoints:
    @pytest.mark.parametrize(("validation", "encoder"), [(0.3, {}), (None, LEARNING)], ids=["frozen", "learning"])
    def test_stopped_within_an_epoch(self, training, tmp_path, monkeypatch, validation, encoder):
        settings = {"genes": 15, "config": {**TINY, **encoder, "epochs": 4}, "validation": validation, **CPU}
        whole = hggep.tl.fit(training, **settings)
        real = TrainingPlan.training_step

        def interrupted(self, batch, step):
            if self.current_epoch == 2 and step == 1:
                raise RuntimeError("power cut")
            return real(self, batch, step)

        monkeypatch.setattr(TrainingPlan, "training_step", interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", **settings)
        monkeypatch.setattr(TrainingPlan, "training_step", real)
        resumed = hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", resume=True, **settings)
        assert_same_model(whole, resumed)

    def test_checkpoints_of_cross_fitting_are_of_this_fit(self, training, tmp_path):
        """Those of an earlier fit, whose own was removed, are not gone on from."""
        how = {"genes": 10, "config": {**helpers.TINY, "epochs": 1}, "checkpoint_dir": tmp_path / "run", **CPU}
        earlier = hggep.tl.fit(training, **how)
        assert len(list(how["checkpoint_dir"].glob("fit_*/last.ckpt"))) == 2
        (how["checkpoint_dir"] / "last.ckpt").unlink()
        fresh = hggep.tl.fit(training, seed=1, **how)
        how["checkpoint_dir"] = None
        assert_same_model(fresh, hggep.tl.fit(training, seed=1, **how))
        assert fresh.id != earlier.id

    def test_stopped_early_stays_stopped(self, training, tmp_path, monkeypatch):
        scores = iter([0.5, 0.4, 0.3, 0.9, 0.9])
        monkeypatch.setattr(
            TrainingPlan, "on_validation_epoch_end", lambda self: self.log("validation_pcc", next(scores))
        )
        settings = {"genes": 10, "config": {**TINY, "epochs": 5, "patience": 2}, "validation": "S2", **CPU}
        stopped = hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", **settings)
        assert len(stopped.history) == 3
        again = hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", resume=True, **settings)
        assert_same_model(stopped, again)

    def test_another_fits_checkpoint_is_refused(self, training, tmp_path):
        settings = {"genes": 15, "config": {**TINY, "epochs": 1}, "checkpoint_dir": tmp_path / "run", **CPU}
        hggep.tl.fit(training, **settings)
        with pytest.raises(ValueError, match="resume=True"):
            hggep.tl.fit(training, **settings)
        with pytest.raises(ValueError, match="different data, seed"):  # random weights of the seed: other features
            hggep.tl.fit(training, resume=True, seed=4, **settings)
        weights = tmp_path / "random.pth"
        torch.save(ShuffleNetV2(stem_pool=False).state_dict(), weights)
        settings |= {"weights": weights, "checkpoint_dir": tmp_path / "same weights"}
        hggep.tl.fit(training, **settings)
        with pytest.raises(ValueError, match="different seed"):
            hggep.tl.fit(training, resume=True, seed=4, **settings)

    def test_a_folder_that_does_not_fit_is_refused_before_images_are_read(self, training, tmp_path, monkeypatch):
        (tmp_path / "last.ckpt").touch()
        monkeypatch.setattr("hggep_sc.training.fit.read_sections", None)
        with pytest.raises(ValueError, match="pass resume=True to continue it, or another folder"):
            hggep.tl.fit(training, genes=15, config=TINY, checkpoint_dir=tmp_path, **CPU)

    def test_resume_needs_a_folder(self, training):
        with pytest.raises(ValueError, match="checkpoint_dir"):
            hggep.tl.fit(training, genes=15, config=TINY, resume=True, **CPU)

    def test_ctrl_c_reaches_the_caller(self, training, monkeypatch):
        handler = signal.getsignal(signal.SIGINT)

        def press(self, batch, step):
            os.kill(os.getpid(), signal.SIGINT)
            return real(self, batch, step)

        real = TrainingPlan.training_step
        monkeypatch.setattr(TrainingPlan, "training_step", press)
        with pytest.raises(KeyboardInterrupt, match="with checkpoint_dir= it could be resumed"):
            hggep.tl.fit(training, genes=15, config=TINY, **CPU)
        assert signal.getsignal(signal.SIGINT) is handler

    def test_ctrl_c_leaves_the_last_checkpoint(self, training, tmp_path, monkeypatch):
        whole = hggep.tl.fit(training, genes=15, config=TINY, **CPU)
        real = TrainingPlan.training_step

        def press(self, batch, step):
            if self.current_epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, batch, step)

        monkeypatch.setattr(TrainingPlan, "training_step", press)
        how = {"genes": 15, "config": TINY, "checkpoint_dir": tmp_path / "run", **CPU}
        with pytest.raises(KeyboardInterrupt, match=rf"checkpoint_dir='{how['checkpoint_dir']}', resume=True goes on"):
            hggep.tl.fit(training, **how)
        trained_anew = []
        monkeypatch.setattr(
            TrainingPlan,
            "training_step",
            lambda self, batch, step: trained_anew.append(self.current_epoch) or real(self, batch, step),
        )
        assert_same_model(whole, hggep.tl.fit(training, resume=True, **how))
        assert set(trained_anew) == {2}

    @pytest.mark.parametrize("step", [7, 10], ids=["of an ensemble", "without a section"])
    def test_ctrl_c_in_a_further_network_names_the_folder_of_the_fit(self, training, tmp_path, monkeypatch, step):
        """In its second epoch: two networks of four steps each come before those that see one section alone."""
        how = {**TEN_GENES, "config": {**TWO, "epochs": 2, "cross_fit": True}}
        whole = hggep.tl.fit(training, **how)
        handler, real, steps = signal.getsignal(signal.SIGINT), TrainingPlan.training_step, []

        def press(self, batch, number):
            steps.append(number)
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, batch, number)

        monkeypatch.setattr(TrainingPlan, "training_step", press)
        with pytest.raises(KeyboardInterrupt, match="resume=True goes on from the last checkpoint") as pressed:
            hggep.tl.fit(training, checkpoint_dir=tmp_path / "run", **how)
        assert signal.getsignal(signal.SIGINT) is handler
        folder = re.search("checkpoint_dir='(.*)', resume", str(pressed.value))[1]
        assert folder == str(tmp_path / "run")
        steps.clear()
        monkeypatch.setattr(TrainingPlan, "training_step", lambda *given: steps.append(given) or real(*given))
        assert_same_model(whole, hggep.tl.fit(training, checkpoint_dir=folder, resume=True, **how))
        assert len(steps) == 2 * 4 + 4 * 2 - {7: 6, 10: 9}[step]  # up to the last checkpoint

    @encoders
    def test_ctrl_c_while_images_are_read_names_the_folder(self, training, tmp_path, monkeypatch, warned, encoder):
        how = {**TEN_GENES, "config": {**TINY, **encoder, "epochs": 1}, "checkpoint_dir": tmp_path / "run"}
        whole = hggep.tl.fit(training, **{**how, "checkpoint_dir": None})
        real = SectionImage.read_patches

        def press(self, *given, size, **settings):
            if size > 1:  # by which checks look at an image
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, *given, size=size, **settings)

        monkeypatch.setattr(SectionImage, "read_patches", press)
        with pytest.raises(KeyboardInterrupt, match=rf"checkpoint_dir='{tmp_path / 'run'}', resume=True goes on"):
            hggep.tl.fit(training, **how)
        monkeypatch.undo()
        assert_same_model(whole, hggep.tl.fit(training, resume=True, **how))
        assert "holds no checkpoint yet" in warned.text

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [0, 2], ids=["of the whole", "of a fit without a section"])
    def test_a_kill_loses_an_epoch_at_most(self, training, tmp_path, monkeypatch, number):
        """SIGKILL in the third epoch of the first fit, or of one of those for cross-fitting."""
        config = helpers.TINY
        for name, section in training.items():
            section.write_h5ad(tmp_path / f"{name}.h5ad")
        script = f"""
import os, signal, sys
import anndata as ad
import torch
import hggep_sc as hggep
from hggep_sc.training.plan import TrainingPlan
torch.set_num_threads({torch.get_num_threads()})
real, fits = TrainingPlan.training_step, []
def killed(self, batch, step):
    if self not in fits:
        fits.append(self)
    if len(fits) == {number + 1} and self.current_epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, batch, step)
TrainingPlan.training_step = killed
sections = {{name: ad.read_h5ad(f"{tmp_path}/{{name}}.h5ad") for name in {list(training)}}}
hggep.tl.fit(sections, genes=15, config={config}, checkpoint_dir={str(tmp_path / "run")!r}, **{CPU})
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT)
        assert done.returncode == -signal.SIGKILL, done.stderr
        epochs, real = [], TrainingPlan.training_step

        def counted(self, batch, step):
            epochs.append(self.current_epoch)
            return real(self, batch, step)

        monkeypatch.setattr(TrainingPlan, "training_step", counted)
        resumed = hggep.tl.fit(training, genes=15, config=config, checkpoint_dir=tmp_path / "run", resume=True, **CPU)
        # two steps an epoch with two sections; one in the two fits without one of them, which come after
        assert epochs == ([2, 2, 0, 1, 2, 0, 1, 2] if number == 0 else [2])
        assert_same_model(hggep.tl.fit(training, genes=15, config=config, **CPU), resumed)

    @pytest.mark.parametrize("resume", [True, False])
    def test_what_was_encoded_is_not_encoded_again(self, sections, tmp_path, monkeypatch, resume):
        """Ctrl-C when features of half of the third section are about to be put away; those of the rest are there."""
        monkeypatch.setattr(slide, "PART_SPOTS", 20)
        run = tmp_path / "run"
        how = {**TEN_GENES, "config": {**TINY, "epochs": 1}}
        whole = hggep.tl.fit(sections, **how)
        put = Path.replace

        def stopped(self, target):
            if len(list(run.rglob("*.safetensors"))) == 6:  # the sixth is not in its place yet
                raise KeyboardInterrupt
            return put(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopped)
            with pytest.raises(KeyboardInterrupt, match="resume=True goes on"):
                hggep.tl.fit(sections, checkpoint_dir=run, **how)
        described = spots_to_describe(monkeypatch)
        assert_same_model(whole, hggep.tl.fit(sections, checkpoint_dir=run, resume=resume, **how))
        assert described == (1 if resume else 6) * [(20, 1)]
        assert not (run / "encoded").exists()  # which are large, and no longer of use
        assert (run / "last.ckpt").exists()

    @pytest.mark.parametrize("resume", [True, False])
    def test_features_of_other_sections_are_not_taken(self, sections, tmp_path, monkeypatch, caplog, resume):
        how = {**TEN_GENES, "config": {**TINY, "epochs": 1}}
        with monkeypatch.context() as patch:
            patch.setattr(TrainingPlan, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                hggep.tl.fit(sections, checkpoint_dir=tmp_path, **how)
        sections["S1"].obsm["spatial"] += 20
        resumed = hggep.tl.fit(sections, checkpoint_dir=tmp_path, resume=resume, **how)
        assert ("features are computed anew" in caplog.text) == resume
        assert_same_model(hggep.tl.fit(sections, **how), resumed)

    def test_features_of_a_module_are_not_kept(self, sections, tmp_path, monkeypatch):
        """Its hash does not tell what it does with its weights."""
        how = {**TEN_GENES, "config": {**TINY, "epochs": 1}, "checkpoint_dir": tmp_path}
        monkeypatch.setattr(TrainingPlan, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            hggep.tl.fit(sections, encoder=helpers.MeanColour(), **how)
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_folder_of_the_users_stays(self, sections, tmp_path):
        how = {**TEN_GENES, "config": {**TINY, "epochs": 1}, "checkpoint_dir": tmp_path}
        (tmp_path / "encoded").mkdir()
        (tmp_path / "encoded" / "mine.npy").write_text("mine")
        with pytest.raises(ValueError, match=r"encoded' is there, and not of a fit: choose another folder"):
            hggep.tl.fit(sections, **how)
        sections = {name: embedded(section) for name, section in sections.items()}
        hggep.tl.fit(sections, encoder="X_emb", **how)
        assert (tmp_path / "encoded" / "mine.npy").read_text() == "mine"

    def test_what_interrupts_the_writing_of_a_checkpoint_leaves_the_last(self, training, tmp_path, monkeypatch):
        how = {"genes": 15, "config": TINY, "checkpoint_dir": tmp_path / "run", **CPU}
        real, written = Path.write_bytes, []

        def half(self, content):
            if self.name == "last.ckpt":
                written.append(self)
                if len(written) == 3:
                    real(self, content[: len(content) // 2])
                    raise OSError("no space left on device")
            return real(self, content)

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match=r"last\.ckpt could not be written.*no space left"):
            hggep.tl.fit(training, **how)
        monkeypatch.undo()
        there = sorted(file.name for file in how["checkpoint_dir"].iterdir())
        assert there == ["encoded", "fit.json", "fit.lock", "last.ckpt"]
        resumed = hggep.tl.fit(training, resume=True, **how)
        assert_same_model(hggep.tl.fit(training, genes=15, config=TINY, **CPU), resumed)


class TestBadInput:
    def test_unknown_preset(self, training):
        with pytest.raises(ValueError, match=r"preset='best'.*'default', 'paper', 'published'"):
            hggep.tl.fit(training, preset="best", **CPU)

    def test_unknown_setting(self, training):
        with pytest.raises(ValueError, match="'epoch'"):
            hggep.tl.fit(training, config={"epoch": 3}, **CPU)

    def test_published_has_no_switches(self, training):
        with pytest.raises(ValueError, match=r"config\.ham: the published network"):
            hggep.tl.fit(training, preset="published", config={"ham": False}, **CPU)

    def test_unknown_device(self, training):
        with pytest.raises(ValueError, match=r"device='gpu0'.*'cpu'"):
            hggep.tl.fit(training, weights=None, device="gpu0")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
    def test_cuda_absent(self, training):
        with pytest.raises(ValueError, match=r"device='cuda'.*0 CUDA devices"):
            hggep.tl.fit(training, weights=None, device="cuda")

    def test_no_counts(self, training):
        training["S2"].X = None
        with pytest.raises(ValueError, match=r"'S2' has no counts.*layer="):
            hggep.tl.fit(training, genes=10, config=TINY, **CPU)

    def test_one_spot(self, training):
        with pytest.raises(ValueError, match="more than 7 spots"):
            hggep.tl.fit(training["S1"][:1].copy(), genes=10, config=TINY, **CPU)
        with pytest.raises(ValueError, match="two spots"):
            hggep.tl.fit(training["S1"][:1].copy(), genes=["TUM01", "STR01"], config=TINY, **CPU)

    def test_unknown_layer(self, training):
        with pytest.raises(KeyError, match="'raw'"):
            hggep.tl.fit(training, genes=10, config=TINY, layer="raw", **CPU)

    def test_missing_weights(self, training):
        with pytest.raises(FileNotFoundError, match="pretrained"):
            hggep.tl.fit(training, genes=10, config=TINY, **{**CPU, "weights": "nowhere.pth"})

    def test_log_values_are_no_counts(self, training):
        training["S1"].layers["counts"] = training["S1"].X.copy()
        training["S1"].X = training["S1"].X.log1p()
        with pytest.raises(ValueError, match=r"non-integer.*layer="):
            hggep.tl.fit(training, genes=10, config=TINY, **CPU)

    def test_scale_known_for_some(self, training):
        del training["S2"].uns["spatial"]["S2"]["scalefactors"]["microns_per_pixel"]
        training["S2"].uns["spatial"]["S2"]["metadata"].pop("technology", None)
        with pytest.raises(ValueError, match=r"S2.*mpp="):
            hggep.tl.fit(training, genes=10, config=TINY, **CPU)

    def test_published_needs_the_array_grid(self, training):
        del training["S1"].obs["array_col"]
        with pytest.raises(KeyError, match="array_col"):
            hggep.tl.fit(training, genes=10, preset="published", config={"epochs": 1}, **CPU)


def test_memory_that_runs_out_in_training_says_what_to_do(training, monkeypatch):
    """Chunks are not halved: the model would be another."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingPlan, "training_step", full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as left:
        hggep.tl.fit(training, **TEN_GENES, config=TINY)
    assert left.value.__notes__ == [
        "Training took up to 40 spots at once: config={'chunk_spots': 20} takes half as many"
    ]


def test_published_preset_trains(training):
    """One epoch of the released network: its own crop, scale and loss terms."""
    few = {name: section[:12].copy() for name, section in training.items()}
    model = hggep.tl.fit(few, genes=8, preset="published", config={"epochs": 1}, **CPU)
    assert {"mse", "zinb", "distillation"} <= set(model.history)
    assert (model.scale.normalize, model.scale.log_base) == ("panel", "10")
