import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

GENES = [f"gene{i}" for i in range(30)]


@pytest.fixture(autouse=True)
def _no_windows(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    plt.close("all")


@pytest.fixture
def within_figure():
    """Check that a figure holds all that is drawn in it."""

    def check(figure):
        figure.canvas.draw()
        box, whole = figure.get_tightbbox(), figure.bbox_inches
        slack = 0.02  # inches
        np.testing.assert_array_less([-slack, -slack], box.p0)
        np.testing.assert_array_less(box.p1, whole.p1 + slack)

    return check


@pytest.fixture
def scores() -> pd.DataFrame:
    """Tidy table of three sections, three methods and two seeds; one gene is constant in S2, one method always."""
    rng = np.random.default_rng(0)
    rows = []
    for s, section in enumerate(["S1", "S2", "S3"]):
        ceiling = rng.uniform(0.4, 0.6, len(GENES))
        for m, method in enumerate(["gene_mean", "ridge", "hggep"]):
            for seed in (0, 1):
                pcc = 0.1 * m + 0.05 * s + rng.normal(0, 0.1, len(GENES))
                if section == "S2":
                    pcc[3] = np.nan
                if method == "gene_mean":
                    pcc[:] = np.nan
                log_p = 20 * np.abs(pcc)
                figures = {
                    "pcc": pcc,
                    "pcc_neg_log10_p": log_p,
                    "pcc_padj": np.minimum(1, 10**-log_p * 3),
                    "rmse": rng.uniform(0.5, 1, len(GENES)),
                    "ceiling": ceiling,
                }
                names = {"fold": section, "section": section, "method": method, "seed": seed, "gene": GENES}
                rows += [pd.DataFrame({**names, "metric": name, "value": v}) for name, v in figures.items()]
    return pd.concat(rows, ignore_index=True).sample(frac=1, random_state=0).sort_values("section", kind="stable")
