import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hggep_sc as hggep

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def records(monkeypatch, sections, tmp_path):
    """The script on three small sections, which stand for all; only ridges, and no set of more than 50 genes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("records")
    ridge = {
        "method": "ridge",
        "weights": None,
        "config": {"patch_size": 32, "fields_um": (60.0,), "fields_px": (60.0,)},
    }
    for number, section in enumerate(sections.values()):
        section.obs["patient"] = "AB"[number % 2]
    monkeypatch.setattr(module, "METHODS", {"ridge": ridge, "default": {"preset": "default"}})
    for protocol in module.PROTOCOLS.values():
        monkeypatch.setitem(protocol, "sections", list(sections))
        monkeypatch.setitem(protocol, "genes", 55 if "groups" in protocol else sections["S1"].var_names.tolist())
    monkeypatch.delitem(module.USAGES, "HMHVG200")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(hggep.datasets, "her2st", lambda names: {name: sections[name].copy() for name in names})
    monkeypatch.delenv("HGGEP_SHARED", raising=False)
    yield module
    sys.modules.pop("records")


@pytest.mark.parametrize(
    ("protocol", "said"),
    [("sections", "all 3 sections (S1 S2 S3), 3 sections left out in turn; 60 genes"), ("patients", "2 patients left")],
)
@pytest.mark.filterwarnings("ignore::hggep_sc.errors.LeakageWarning")
def test_a_protocol_is_run_and_its_tables_are_written(records, monkeypatch, tmp_path, protocol, said):
    call = ["records.py", protocol, "--methods", "ridge", "--store", str(tmp_path / "folds"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", call)
    records.main()
    written = tmp_path / "results" / f"records_{protocol}"
    report = written.with_suffix(".md").read_text()
    assert said in report
    means = pd.read_csv(written.with_suffix(".csv"), index_col="usage")
    assert list(means.index) == list(records.USAGES)
    assert np.isfinite(means["ridge"]).all()
    assert f"| HEG50, smoothed | {means.loc['HEG50, smoothed', 'ridge']:.3f} |" in report
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "folds").glob("*.h5ad")}
    records.main()  # finished folds are read
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "folds").glob("*.h5ad")} == stored
    pd.testing.assert_frame_equal(pd.read_csv(written.with_suffix(".csv"), index_col="usage"), means)


def test_a_shortened_network_says_so(records, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["records.py", "sections", "--methods", "ridge", "default", "--epochs", "2"])
    methods = records.methods_of(records.arguments())
    assert list(methods) == ["ridge", "default, 2 epochs"]
    assert methods["default, 2 epochs"]["config"] == {"epochs": 2}
    assert "config" not in records.METHODS["default"]


def test_the_sections_are_those_of_the_published_figures(records, shared):
    published = pd.read_csv(shared / "reference" / "published_pcc.csv").query("dataset == 'her2'")["section"]
    assert sorted(set(published)) == records.SECTIONS
