import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import hggep_sc as hggep
from helpers import WAIT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result():
    """Two folds by two methods; the second method failed in fold B, the first has no correlation in A."""
    values = {("A", "ridge"): 0.25, ("B", "ridge"): 0.35, ("A", "default"): 0.5}
    of_metric = {"pcc": 1.0, "spearman": 1.1, "rmse": 2.0, "ssim": 0.2, "ceiling": 3.0}
    of_metric |= {"pcc_beyond_depth": 0.4, "ceiling_beyond_depth": 2.0}
    table = pd.DataFrame(
        [
            (fold, fold, method, 0, gene, metric, value * factor)
            for (fold, method), value in values.items()
            for metric, factor in of_metric.items()
            for gene in ("g1", "g2")
        ],
        columns=["fold", "section", "method", "seed", "gene", "metric", "value"],
    )
    ran = {"test": "x", "training": "y", "model": "m", "n_genes": 2, "n_spots": 9, "epochs": 0, "fit_s": 2.0}
    ran |= {"predict_s": 1.0, "device": "cpu", "threads": 1, "hggep_sc": "0", "torch": "2", "python": "3", "error": ""}
    folds = [{"fold": fold, "method": method, "seed": 0, **ran} for fold, method in values]
    failed = {"fold": "B", "method": "default", "seed": 0, "test": "x", "training": "y", "error": "out of memory"}
    return hggep.CrossValidation(table, pd.DataFrame([*folds, failed]))


def test_report_of_a_run_in_which_a_fold_failed(accuracy, result, monkeypatch):
    monkeypatch.setitem(accuracy.DATA, "her2st", ["A", "B"])
    rows = accuracy.rows_of("her2st", result)
    report = accuracy.markdown(rows)
    assert "| ridge | 0.250 | 0.350 | 0.300 |" in report
    assert "| default | 0.500 | nan | nan |" in report  # no mean over fewer folds than the others'
    assert "| noise ceiling | 1.125 | 1.050 | 1.087 |" in report
    assert "| ridge | 0.100 | 0.140 | 0.120 |" in report  # beyond depth
    assert "| noise ceiling | 0.750 | 0.700 | 0.725 |" in report
    assert "| default | ridge | 0.250 |" in report  # in pairs, over the one fold that both have
    assert "Failed: default on B, seed 0: out of memory" in report
    others = ["gene_mean", "nearest_patches", "low_rank_ridge", "hest_ridge", "network_alone"]
    trunk = [f"{name}_trunk" for name in ("nearest_patches", "ridge", "low_rank_ridge", "network_alone", "default")]
    unrun = [*(f"{name} on A B" for name in others), "default on B"]
    several = [f"{name}_{n}" for n in ("two", "three") for name in ("ridge", "low_rank_ridge", "default")]
    unrun += [f"{name} on A B" for name in ("low_rank_ridge_224", *several, *trunk, "paper", "published")]
    assert f"Not run with all epochs: {'; '.join(unrun)}." in report


def test_a_shortened_run_is_told_apart(accuracy, result):
    """It stands beside the whole one, in its place, and does not count as that."""
    shortened = result.table.replace({"method": {"default": "published, 5 epochs"}})
    runs = result.folds.replace({"method": {"default": "published, 5 epochs"}})
    report = accuracy.markdown(accuracy.rows_of("her2st", hggep.CrossValidation(shortened, runs)))
    assert "| published, 5 epochs | 0.500 |" in report
    assert "published on B4 C2 C3 C4 C5" in report
    assert accuracy.place("published, 5 epochs") == accuracy.place("published") > accuracy.place("default")


@pytest.mark.parametrize(
    ("arguments", "shared", "message"),
    [
        (["visium"], {"HGGEP_SHARED": "."}, "unknown data visium; there are her2st, mob"),
        ([], {}, "HGGEP_SHARED is not set"),  # so the call without data sets, as its help shows it, is understood
    ],
)
def test_arguments(arguments, shared, message):
    call = [sys.executable, SCRIPT, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=shared, timeout=WAIT)
    assert done.returncode == 2
    assert message in done.stderr
