"""A fit that is stopped and gone on with ends as one that is not, wherever it was stopped."""

import shutil
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

import hggep_sc as hggep
from helpers import CPU, LEARNING, TINY
from hggep_sc.training.checkpoint import WholeCheckpoints
from hggep_sc.training.plan import TrainingPlan

SMALL = {**TINY, "patch_size": 16, "fields_um": (60.0,), "fields_px": (112.0,), "epochs": 3}
ALONE = {**SMALL, "cross_fit": False}
KINDS = {
    "plain": {"config": ALONE},
    "every other epoch": {"config": {**ALONE, "epochs": 5}, "checkpoint_every": 2, "encoder": "X_emb"},
    "an encoder that learns": {"config": {**ALONE, **LEARNING, "stain_jitter": 0.1}},
    "validation": {"config": {**ALONE, "patience": 2}, "validation": 0.3, "encoder": "X_emb"},
    "chunks": {"config": {**ALONE, "chunk_spots": 15, "schedule": "constant"}},
}
ALL_NETWORKS = {"config": {**SMALL, "epochs": 2, "ensemble": 2, "chunk_spots": 30}, "encoder": "X_emb"}


@pytest.fixture
def states(tmp_path, monkeypatch):
    """What returns the model of a fit, and its folder as it was before and after each checkpoint was written."""

    def noted(fit):
        kept, seen = [], set()
        write = WholeCheckpoints.save_checkpoint

        def keep():
            files = sorted(file for file in (tmp_path / "run").rglob("*") if file.is_file())
            content = sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).digest()
            if content not in seen:
                seen.add(content)
                kept.append(tmp_path / f"state {len(kept)}")
                shutil.copytree(tmp_path / "run", kept[-1])

        def noting(self, *given, **options):
            keep()
            write(self, *given, **options)
            keep()

        with monkeypatch.context() as patch:
            patch.setattr(WholeCheckpoints, "save_checkpoint", noting)
            whole = fit(checkpoint_dir=tmp_path / "run")
        return whole, kept

    return noted


@pytest.fixture
def embedded(sections):
    for section in sections.values():
        section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 5))
    return sections


def assert_stopped_anywhere_ends_the_same(states, monkeypatch, sections, how, n_states):
    steps, step = [], TrainingPlan.training_step
    monkeypatch.setattr(TrainingPlan, "training_step", lambda *given: steps.append(given[2]) or step(*given))

    def fit(**more):
        steps.clear()
        return hggep.tl.fit(sections, genes=8, **how, **CPU, **more)

    whole, kept = states(fit)
    assert len(kept) == n_states
    lengths = [len(steps)]
    for state in kept:
        resumed = fit(checkpoint_dir=state, resume=True)
        assert resumed.id == whole.id, state
        pd.testing.assert_frame_equal(resumed.history, whole.history)
        lengths.append(len(steps))
    assert sorted(lengths, reverse=True) == lengths  # the later it was stopped, the less there is to do
    assert lengths[0] == lengths[1]
    last = 1 if how.get("checkpoint_every") else 0  # epochs after the last checkpoint
    assert lengths[-1] == last * lengths[0] // how["config"]["epochs"]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_epochs_end(states, embedded, monkeypatch, kind):
    how = KINDS[kind]
    written = how["config"]["epochs"] // how.get("checkpoint_every", 1)
    assert_stopped_anywhere_ends_the_same(states, monkeypatch, embedded, how, written + 1)


@pytest.mark.slow
def test_stopped_in_any_network(states, embedded, monkeypatch):
    """Two networks of all sections, and two without each of the three in turn, of two epochs each."""
    assert_stopped_anywhere_ends_the_same(states, monkeypatch, embedded, ALL_NETWORKS, 1 + 2 * (2 + 2 * 3))
