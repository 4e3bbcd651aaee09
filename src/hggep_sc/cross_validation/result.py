"""What a cross-validation found."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from ..evaluation.moments import TARGETS, correlations
from ..evaluation.scores import per_fold, per_gene, rows_of_metric, t_interval
from ..runtime.validators import choice, flag, names
from .gene_sets import ALL, BY, chosen_genes, in_words

logger = logging.getLogger(__name__)

# columns of `CrossValidation.folds`
FACTS = ["fold", "method", "algorithm", "seed", "test", "training", "role", "n_genes", "n_spots", "model", "epochs"]
FACTS += ["fit_s", "predict_s", "device", "threads", "hggep_sc", "torch", "python", "error"]

Over = Literal["section", "fold", "all"]
SPOTS = {"section": "each section", "fold": "all sections of a fold", "all": "all sections of all folds"}
PROTOCOLS = {"hest": "fold"}  # over what spots a benchmark takes its correlations


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
    moments
        A row per fold, section, method, seed and gene: number of spots, and means and summed squares and products of
        prediction and target, by which `summary` correlates over several sections, or with smoothed targets.
    training
        A row per fold, method and gene: mean and variance of its log expression in the training sections, by which
        `summary` chooses genes.
    protocol
        That of `tl.cross_validate(protocol=)`, whose way of scoring is the default of `summary` and `comparison`.
    """

    table: pd.DataFrame
    folds: pd.DataFrame
    moments: pd.DataFrame | None = field(default=None, repr=False)
    training: pd.DataFrame | None = field(default=None, repr=False)
    protocol: Literal["hest"] | None = None

    def summary(
        self,
        metric: str = "pcc",
        *,
        genes: str | Sequence[str] = ALL,
        over: Over | None = None,
        smooth: bool = False,
    ) -> pd.DataFrame:
        """Mean of a metric over folds, per method; by the usage of one paper or another.

        Parameters
        ----------
        metric
            One of `table["metric"]`.
        genes
            "all" that are predicted, names, or a set that is chosen in each fold, among the predicted genes and without
            its test sections (other numbers will do):

            - "HEG50", the 50 of the highest mean log expression in the training sections;
            - "HVG50", the 50 of the largest variance of log expression within the training sections;
            - "HMHVG300", of high mean and high variance: the first 300 that are in both rankings' leading part (Zhu et
              al., Stem, 2025, who take raw counts of all sections);
            - "HPG50", the 50 that the method predicts best on the test sections of the *other* folds. Papers choose
              them on the folds that they score (Chung et al., TRIPLEX, 2024), which reads higher. Models of the other
              folds have seen this fold's test sections in training: compare methods by it, and take it for no more.
        over
            Spots that a correlation is over: "section", each section by itself, and the mean over them; "fold", all
            test sections of a fold at once, as HEST-Bench has it; "all", all sections at once, each predicted by its
            own fold's model, of the genes that were predicted, or chosen, for every one of them; it leaves no interval.
            Differences between sections count as predicted in the last two.
            None: "section", or what `protocol` says.
        smooth
            Correlate with each spot's mean over itself and its neighbours in place of the spot itself (TRIPLEX): fewer
            counting errors in the target, and higher figures. The models are trained on targets as they are.

        Returns
        -------
        Indexed by method: `algorithm`, what the label stands for; `mean` over the folds, `ci_low` and `ci_high` (95 %,
        Student's t over folds), `sd` over folds, `n_folds`, and `undefined`, the share of genes without a value
        (constant predictions or counts). A fold's value is the mean over its genes, sections and seeds. Folds share
        training sections, so that the interval is somewhat too narrow. Where it is not the mean PCC of all genes by
        section, columns `genes`, `over` and `target` say what it is.

        Raises
        ------
        ValueError
            If there is no such metric or set of genes, if too few genes were predicted for it, if `over` is "all" and
            folds have no gene in common, or if `over` or `smooth` is asked for of another metric than "pcc".
        """
        rows, usage = self._rows(metric, genes, over, smooth)
        undefined = rows.groupby("method", sort=False)["value"].agg(lambda column: column.isna().mean())
        values = per_gene(rows, metric)
        summary = pd.DataFrame({name: t_interval(per_fold(values[name]).dropna().to_numpy()) for name in values}).T
        summary["n_folds"] = summary["n_folds"].astype(int)
        if "algorithm" in self.table:
            summary.insert(0, "algorithm", self.table.groupby("method", sort=False)["algorithm"].first())
        return summary.assign(undefined=undefined, **usage).rename_axis("method")

    def comparison(
        self,
        metric: str = "pcc",
        *,
        genes: str | Sequence[str] = ALL,
        over: Over | None = None,
        smooth: bool = False,
    ) -> pd.DataFrame:
        """Compare the methods in pairs, fold by fold.

        Parameters
        ----------
        metric
            One of `table["metric"]`.
        genes, over, smooth
            As in `summary`. Of "HPG50", which differ by method, those that both have.

        Returns
        -------
        A row per pair: `method`, `reference`, `difference` (method minus reference, gene by gene: mean over the
        genes that both have a value for, then over sections, then over the folds that both have), `ci_low`,
        `ci_high`, `sd`, `n_folds`, `n_higher` (folds where the method has the higher value) and `pval` (paired
        t-test over folds, two-sided).

        Raises
        ------
        ValueError
            As `summary`.
        """
        from scipy.stats import ttest_1samp

        rows, usage = self._rows(metric, genes, over, smooth)
        values = per_gene(rows, metric)
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
        return pd.DataFrame(pairs, columns=columns).astype({"n_folds": int}).assign(**usage)

    def _rows(
        self, metric: str, genes: str | Sequence[str], over: Over | None, smooth: bool
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """Return the rows of a metric by some usage, and columns that say so where it is not that of the table."""
        usual = PROTOCOLS[self.protocol] if self.protocol is not None and metric == "pcc" else "section"
        spots = choice("over", usual if over is None else over, SPOTS)
        rows = rows_of_metric(self.table, metric)
        from_moments = flag("smooth", smooth) or spots != "section"
        if from_moments and metric != "pcc":
            raise ValueError(f"over= and smooth= are about metric='pcc': {metric!r} is of each section, as it is")
        genes = genes if isinstance(genes, str) else names("genes", genes)
        if genes == ALL and not from_moments:
            return rows, {}
        chosen = None if genes == ALL else chosen_genes(genes, rows_of_metric(self.table, "pcc"), self.training)
        if from_moments:
            rows = self._correlations(spots, smooth, chosen)
        elif chosen is not None:
            rows = _among(rows, chosen)
        usage = {"genes": in_words(genes), "over": SPOTS[spots], "target": TARGETS[int(smooth)]}
        logger.info("%s by another usage: %s", metric, "; ".join(f"{name}: {said}" for name, said in usage.items()))
        return rows, usage

    def _correlations(self, over: str, smooth: bool, chosen: pd.MultiIndex | None) -> pd.DataFrame:
        """Return correlations from the moments, as rows of the table; `section` says where sections are pooled."""
        if self.moments is None:
            raise ValueError(
                "over= and smooth= need the moments of each prediction, which this result does not hold: it has to "
                "come from tl.cross_validate, where path= spares running finished folds again"
            )
        moments = self.moments if chosen is None else _among(self.moments, chosen)
        if over == "all":
            moments = _everywhere(moments).assign(fold=over)
        if over != "section":
            moments = moments.assign(section=over)
        by = ["fold", "section", "method", "seed", "gene"]
        return correlations(moments, by, TARGETS[int(smooth)]).reset_index().assign(metric="pcc")

    def __repr__(self) -> str:
        failed = int((self.folds["error"] != "").sum())
        done = f"{len(self.folds) - failed} of {len(self.folds)} runs" if failed else f"{len(self.folds)} runs"
        summary = self.summary().round(4).to_string() if len(self.table) else ""
        return f"CrossValidation({done}; mean PCC per gene)\n{summary}"


def _among(rows: pd.DataFrame, chosen: pd.MultiIndex) -> pd.DataFrame:
    """Return the rows whose gene is one of those of its fold and method."""
    return rows[pd.MultiIndex.from_frame(rows[[*BY, "gene"]]).isin(chosen)]


def _everywhere(moments: pd.DataFrame) -> pd.DataFrame:
    """Return the moments of each method's genes that are there for all sections of all folds."""
    parts = moments[[*BY, "section", "seed"]].drop_duplicates().groupby("method").size()
    found = moments.groupby(["method", "gene"], sort=False)["fold"].transform("size")
    kept = moments[found == moments["method"].map(parts)]
    if lacking := [method for method in parts.index if method not in set(kept["method"])]:
        raise ValueError(
            f"over='all': {', '.join(map(repr, lacking))} has no gene that was chosen or predicted in all folds: ask "
            "for more genes, name them by genes=, or take over='fold'"
        )
    return kept
