"""What a cross-validation found."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..evaluation.scores import per_fold, per_gene, rows_of_metric, t_interval

# columns of `CrossValidation.folds`
FACTS = ["fold", "method", "algorithm", "seed", "test", "training", "role", "n_genes", "n_spots", "model", "epochs"]
FACTS += ["fit_s", "predict_s", "device", "threads", "hggep_sc", "torch", "python", "error"]


@dataclass(frozen=True)
class CrossValidation:
    """Result of `hggep_sc.tl.cross_validate`.

    Attributes
    ----------
    table
        A row per figure: fold, section, method (its label), algorithm (what the label stands for), seed, gene, metric,
        value; the metrics of `hggep_sc.tl.evaluate`.
    folds
        A row per fold, method and seed: what the label stands for, test and training sections, role of the test
        sections, genes, spots, model id, seconds for fitting and predicting, the device, and the error where it failed
        (empty else).
    """

    table: pd.DataFrame
    folds: pd.DataFrame

    def summary(self, metric: str = "pcc") -> pd.DataFrame:
        """Mean of a metric over folds, per method.

        Parameters
        ----------
        metric
            One of `table["metric"]`.

        Returns
        -------
        Indexed by method: `algorithm`, what the label stands for; `mean` over the folds, `ci_low` and `ci_high` (95 %,
        Student's t over folds), `sd` over folds, `n_folds`, and `undefined`, the share of genes without a value
        (constant predictions or counts). A fold's value is the mean over its genes, sections and seeds. Folds share
        training sections, so that the interval is somewhat too narrow.

        Raises
        ------
        ValueError
            If there is no such metric.
        """
        rows = rows_of_metric(self.table, metric)
        undefined = rows.groupby("method", sort=False)["value"].agg(lambda column: column.isna().mean())
        values = per_gene(self.table, metric)
        summary = pd.DataFrame({name: t_interval(per_fold(values[name]).dropna().to_numpy()) for name in values}).T
        summary["n_folds"] = summary["n_folds"].astype(int)
        if "algorithm" in rows:
            summary.insert(0, "algorithm", rows.groupby("method", sort=False)["algorithm"].first())
        return summary.assign(undefined=undefined).rename_axis("method")

    def comparison(self, metric: str = "pcc") -> pd.DataFrame:
        """Compare the methods in pairs, fold by fold.

        Parameters
        ----------
        metric
            One of `table["metric"]`.

        Returns
        -------
        A row per pair: `method`, `reference`, `difference` (method minus reference, gene by gene: mean over the
        genes that both have a value for, then over sections, then over the folds that both have), `ci_low`,
        `ci_high`, `sd`, `n_folds`, `n_higher` (folds where the method has the higher value) and `pval` (paired
        t-test over folds, two-sided).

        Raises
        ------
        ValueError
            If there is no such metric.
        """
        from scipy.stats import ttest_1samp

        values = per_gene(self.table, metric)
        methods = list(values)
        pairs = []
        for i, reference in enumerate(methods):
            for method in methods[i + 1 :]:
                difference = per_fold(values[method] - values[reference]).dropna().to_numpy()
                interval = t_interval(difference)
                constant = len(difference) < 2 or np.ptp(difference) == 0
                pairs.append(
                    {
                        "method": method,
                        "reference": reference,
                        "difference": interval.pop("mean"),
                        **interval,
                        "n_higher": int((difference > 0).sum()),
                        "pval": np.nan if constant else float(ttest_1samp(difference, 0).pvalue),
                    }
                )
        columns = ["method", "reference", "difference", "ci_low", "ci_high", "sd", "n_folds", "n_higher", "pval"]
        return pd.DataFrame(pairs, columns=columns).astype({"n_folds": int})

    def __repr__(self) -> str:
        failed = int((self.folds["error"] != "").sum())
        done = f"{len(self.folds) - failed} of {len(self.folds)} runs" if failed else f"{len(self.folds)} runs"
        summary = self.summary().round(4).to_string() if len(self.table) else ""
        return f"CrossValidation({done}; mean PCC per gene)\n{summary}"
