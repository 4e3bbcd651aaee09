"""The command `hggep`, as a shell calls it."""

import json
import os
import subprocess
import sys

import anndata as ad
import pandas as pd
import pytest
from click.testing import CliRunner

import hggep_sc as hggep
from helpers import TINY
from hggep_sc.cli import hggep as command


@pytest.fixture
def folder(sections, trained, tmp_path):
    """A model, and sections as files."""
    trained.save(tmp_path / "model")
    for name, section in sections.items():
        section.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_predict_and_evaluate(folder, sections, trained):
    done = run("predict", folder / "model", folder / "S3.h5ad", "--out", folder / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "S3" in done.output
    hggep.tl.predict(sections["S3"], trained, device="cpu", progress=False)
    found = ad.read_h5ad(folder / "out" / "S3.h5ad")
    pd.testing.assert_frame_equal(found.to_df("hggep"), sections["S3"].to_df("hggep"))

    scored = run("evaluate", folder / "out" / "S3.h5ad", "--out", folder / "scores")
    assert scored.exit_code == 0, scored.output
    scores = hggep.tl.evaluate(sections["S3"])
    assert f"{scores['pcc'].mean():.3f}" in scored.output
    assert "pval" not in scored.output  # a mean of p-values tells nothing
    kept = pd.read_csv(folder / "scores" / "S3.csv", index_col=0)
    pd.testing.assert_series_equal(kept["pcc"], scores["pcc"], check_index_type=False)


def test_fit_and_info(folder, sections):
    plan = folder / "sections.yaml"
    short = {"genes": 12, "weights": None, "seed": 3, "config": {**TINY, "epochs": 1}}
    plan.write_text(json.dumps({"sections": {"S1": "S1.h5ad", "S2": "S2.h5ad"}, "fit": short}))  # JSON is YAML
    done = run("fit", plan, "--out", folder / "new", "--device", "cpu")
    assert done.exit_code == 0, done.output
    model = hggep.methods.load(folder / "new")
    assert (model.seed, len(model.genes), model.fingerprint.sections) == (3, 12, ["S1", "S2"])
    told = run("info", folder / "new")
    assert model.id in told.output
    assert "'S1', 'S2'" in told.output
    refused = run("fit", plan, "--out", folder / "new")
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "nowhere", "S3.h5ad", "--out", "out"], 1, "FileNotFoundError: there is no model at"),
        (["predict", "model", "S9.h5ad", "--out", "out"], 1, "S9"),
        (["evaluate", "S3.h5ad"], 1, "no prediction"),
        (["evaluate", "S3.csv"], 1, "must be an .h5ad file"),
        (["info", "hf://nobody"], 1, "must be hf://owner/name"),
        (["fit", "empty.yaml", "--out", "new"], 1, "must hold 'sections'"),
        (["fit", "unknown.yaml", "--out", "new"], 1, "'seeds' is neither"),
        (["predict", "model", "--out", "out"], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(folder, monkeypatch, arguments, code, message):
    monkeypatch.chdir(folder)
    (folder / "empty.yaml").write_text("")
    (folder / "unknown.yaml").write_text("sections: {A: S1.h5ad}\nseeds: 3\n")
    done = run(*arguments)
    assert (done.exit_code, "Traceback" in done.output) == (code, False)
    assert message in done.output
    assert not (folder / "new").exists()


def test_it_is_installed(folder):
    """As a process of its own, whose warnings and progress go to standard error."""
    found = subprocess.run(
        [sys.executable, "-m", "hggep_sc.cli", "info", str(folder / "model")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert found.stdout.startswith("---\nlibrary_name: hggep-sc")
    assert found.stderr == ""
