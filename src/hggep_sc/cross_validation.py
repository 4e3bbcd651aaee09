"""Cross-validation: every section predicted by a model that never saw it, by several methods and seeds."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._version import __version__
from .evaluation import section_scores, tidy
from .fold_store import FoldStore
from .methods import fit_method, method_config
from .model import HGGEP
from .record import prediction_record
from .scores import rows_of_metric
from .section import Section
from .weights import locate_weights

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95
FACTS = [
    "fold",
    "method",
    "seed",
    "test",
    "training",
    "n_genes",
    "n_spots",
    "model",
    "epochs",
    "fit_s",
    "predict_s",
    "device",
    "error",
]
THUMBNAIL = 256  # px, of the image by which a section is known again


@dataclass(frozen=True)
class Fold:
    """Sections that are predicted, and those that are trained on for it."""

    name: str
    training: list[Section]
    test: list[Section]


@dataclass(frozen=True, eq=False)  # told apart as objects: sections have no equality
class Task:
    """One fold by one method with one seed: all that another process needs.

    Attributes
    ----------
    fold, method, seed
        What it is called.
    training, test
        Its sections.
    settings
        Arguments of `fit_method`, but for the sections.
    identity
        Hash of everything that the result depends on.
    """

    fold: str
    method: str
    seed: int
    training: list[Section] = field(repr=False)
    test: list[Section] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    identity: str

    @property
    def name(self) -> str:
        """The task in a message."""
        return f"fold {self.fold!r}, method {self.method!r}, seed {self.seed}"


@dataclass(frozen=True)
class FoldResult:
    """What a task gives back.

    Attributes
    ----------
    genes
        Predicted genes.
    predictions
        Expression per test section, float32 (n_spots, n_genes), on the model's scale.
    records
        Per test section what `tl.predict` notes in `uns`.
    scores
        Tidy table: fold, section, method, seed, gene, metric, value.
    facts
        The row of `CrossValidation.folds`.
    """

    genes: list[str]
    predictions: dict[str, np.ndarray]
    records: dict[str, dict[str, Any]]
    scores: pd.DataFrame
    facts: dict[str, Any]


@dataclass(frozen=True)
class CrossValidation:
    """Result of `hggep_sc.tl.cross_validate`.

    Attributes
    ----------
    table
        A row per figure: fold, section, method, seed, gene, metric, value; the metrics of `hggep_sc.tl.evaluate`.
    folds
        A row per fold, method and seed: test and training sections, genes, spots, model id, seconds for fitting
        and predicting, the device, and the error where it failed (empty else).
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
        Indexed by method: `mean` over the folds, `ci_low` and `ci_high` (95 %, Student's t over folds), `sd` over
        folds, `n_folds`, and `undefined`, the share of genes without a value (constant predictions or counts). A
        fold's value is the mean over its genes, sections and seeds. Folds share training sections, so that the
        interval is somewhat too narrow.

        Raises
        ------
        ValueError
            If there is no such metric.
        """
        rows = rows_of_metric(self.table, metric)
        values = self._per_fold(rows)
        undefined = rows.groupby("method", sort=False)["value"].agg(lambda column: column.isna().mean())
        summary = pd.DataFrame({method: _interval(values[method].dropna().to_numpy()) for method in values}).T
        summary["n_folds"] = summary["n_folds"].astype(int)
        return summary.assign(undefined=undefined).rename_axis("method")

    def comparison(self, metric: str = "pcc") -> pd.DataFrame:
        """Compare the methods in pairs, fold by fold.

        Parameters
        ----------
        metric
            One of `table["metric"]`.

        Returns
        -------
        A row per pair: `method`, `reference`, `difference` (mean over folds that both have, method minus
        reference), `ci_low`, `ci_high`, `sd`, `n_folds`, `n_higher` (folds where the method has the higher value)
        and `pval` (paired t-test over folds, two-sided).

        Raises
        ------
        ValueError
            If there is no such metric.
        """
        from scipy.stats import ttest_1samp

        values = self._per_fold(rows_of_metric(self.table, metric))
        methods = list(values)
        pairs = []
        for i, reference in enumerate(methods):
            for method in methods[i + 1 :]:
                difference = (values[method] - values[reference]).dropna().to_numpy()
                interval = _interval(difference)
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

    @staticmethod
    def _per_fold(rows: pd.DataFrame) -> pd.DataFrame:
        """Folds x methods; sections, then seeds, weigh alike."""
        of_section = rows.groupby(["fold", "method", "seed", "section"], sort=False)["value"].mean()
        of_fold = of_section.groupby(["fold", "method"], sort=False).mean()
        return of_fold.unstack("method")[list(dict.fromkeys(rows["method"]))]

    def __repr__(self) -> str:
        failed = int((self.folds["error"] != "").sum())
        done = f"{len(self.folds) - failed} of {len(self.folds)} runs" if failed else f"{len(self.folds)} runs"
        summary = self.summary().round(4).to_string() if len(self.table) else ""
        return f"CrossValidation({done}; mean PCC per gene)\n{summary}"


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean with a t interval; without one from fewer than two values."""
    from scipy.stats import t

    n = len(values)
    if n == 0:
        return {"mean": np.nan, "ci_low": np.nan, "ci_high": np.nan, "sd": np.nan, "n_folds": 0}
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if n > 1 else np.nan
    half = t.ppf(0.5 + CONFIDENCE / 2, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "sd": sd, "n_folds": n}


def leave_out(sections: Sequence[Section], groups: Mapping[str, str] | None, n_folds: int | None) -> list[Fold]:
    """Split sections into folds: one section, or one group of sections, is left out at a time.

    Parameters
    ----------
    sections
        All sections.
    groups
        Group of each section by its name; None: each is its own.
    n_folds
        Number of folds, over which sections or groups are dealt in turn; None for one each.

    Raises
    ------
    ValueError
        If groups do not match the sections, there is one alone, or there are more folds than sections or groups.
    """
    names = [section.name for section in sections]
    if groups is not None:
        unknown, missing = sorted(set(groups) - set(names)), sorted(set(names) - set(groups))
        if unknown or missing:
            raise ValueError(
                "groups= must name the group of every section: "
                + "; ".join(
                    [f"no group for {', '.join(missing)}"] * bool(missing)
                    + [f"no section called {', '.join(unknown)}"] * bool(unknown)
                )
                + f"; the sections are {', '.join(names)}"
            )
    group_of = {name: name if groups is None else str(groups[name]) for name in names}
    units = list(dict.fromkeys(group_of.values()))
    kind = "sections" if groups is None else "groups"
    if len(units) < 2:
        raise ValueError(f"cross-validation needs at least two {kind}; found {', '.join(units) or 'none'}")
    if n_folds is not None and not 2 <= n_folds <= len(units):
        raise ValueError(
            f"n_folds={n_folds} must be between 2 and the number of {kind}, {len(units)}; None leaves one out at a time"
        )
    n = len(units) if n_folds is None else n_folds
    folds = []
    for number in range(n):
        left_out = set(units[number::n])
        test = [section for section in sections if group_of[section.name] in left_out]
        training = [section for section in sections if group_of[section.name] not in left_out]
        folds.append(Fold("+".join(units[number::n]), training, test))
    return folds


def tasks_of(
    folds: Sequence[Fold],
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    shared: Mapping[str, Any],
) -> list[Task]:
    """Return every fold by every method with every seed, all settings filled in.

    `methods` holds per name arguments of `hggep_sc.tl.fit`; `shared` those that hold for all: genes, weights,
    normalize, validation (of the network alone) and device.

    Raises
    ------
    ValueError, TypeError
        For a method or setting that does not exist.
    """
    settings = {name: _settings(name, options, shared) for name, options in methods.items()}
    portable = {section.name: section.portable() for fold in folds for section in fold.test}
    contents = {name: _content(section) for name, section in portable.items()}
    tasks = []
    for fold in folds:
        training, test = ([portable[section.name] for section in part] for part in (fold.training, fold.test))
        for name, arguments in settings.items():
            for seed in seeds:
                described = {
                    "hggep_sc": __version__,
                    "training": {section.name: contents[section.name] for section in fold.training},
                    "test": {section.name: contents[section.name] for section in fold.test},
                    "seed": seed,
                    **{key: value for key, value in arguments.items() if key not in ("device", "progress", "config")},
                    "config": arguments["config"].to_dict(),
                    "weights": _file_hash(arguments["weights"]),
                }
                identity = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
                tasks.append(Task(fold.name, name, seed, training, test, {**arguments, "seed": seed}, identity))
    return tasks


def _settings(name: str, options: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `fit_method` for one entry of `methods`."""
    known = {"method", "preset", "config", *shared} - {"device"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"methods[{name!r}] has {', '.join(unknown)}; it may have {', '.join(sorted(known))}")
    given = {**shared, **options}
    method = given.pop("method", "hggep")
    how = {key: given.pop(key) for key in ("preset", "config") if key in given}
    config = method_config(method, normalize=given.pop("normalize"), **how)
    if method != "hggep" and "validation" not in options:
        given["validation"] = None
    if method == "gene_mean":  # looks at no image: nothing is to be downloaded for it
        given["weights"] = None
    return {"method": method, "config": config, "progress": False, **given}


def _content(section: Section) -> str:
    """Hash of what a portable section is: counts, coordinates, scale and the look of its image."""
    counts = section.table.X.sorted_indices()
    digest = hashlib.sha256("\n".join(map(str, section.var_names)).encode())
    for array in (counts.indptr, counts.indices, counts.data.astype(np.float64), section.xy):
        digest.update(np.ascontiguousarray(array).tobytes())
    with section.open_image() as image:
        digest.update(repr((section.mpp, image.shape)).encode() + image.thumbnail(THUMBNAIL).tobytes())
    return digest.hexdigest()


def _file_hash(weights: str | Path | None) -> str | None:
    path = locate_weights(weights)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def run_task(task: Task) -> FoldResult:
    """Fit on the training sections of a fold, predict and score the others."""
    started = time.perf_counter()
    model = fit_method(task.training, **task.settings)
    fitted = time.perf_counter()
    device = task.settings["device"]
    predictions = {section.name: model.predict(section, device=device)[0] for section in task.test}
    predicted = time.perf_counter()
    records = {section.name: prediction_record(model, [section]) for section in task.test}
    scores = []
    for section in task.test:
        there = np.flatnonzero(np.isin(model.genes, section.var_names))
        scored = section_scores(
            section.table,
            section.obs_rows,
            predictions[section.name][:, there],
            [model.genes[j] for j in there],
            model.scale,
        )
        scores.append(tidy(scored, fold=task.fold, section=section.name, method=task.method, seed=task.seed))
    network = model.network if isinstance(model, HGGEP) else None
    facts = {
        "fold": task.fold,
        "method": task.method,
        "seed": task.seed,
        "test": ", ".join(section.name for section in task.test),
        "training": ", ".join(section.name for section in task.training),
        "n_genes": len(model.genes),
        "n_spots": sum(len(section.xy) for section in task.test),
        "model": model.id,
        "epochs": len(model.history) if isinstance(model, HGGEP) else 0,
        "fit_s": fitted - started,
        "predict_s": predicted - fitted,
        "device": "cpu" if network is None else str(next(network.parameters()).device),
        "error": "",
    }
    return FoldResult(model.genes, predictions, records, pd.concat(scores, ignore_index=True), facts)


def run_tasks(
    tasks: Sequence[Task],
    *,
    executor: Executor | None,
    store: FoldStore | None,
    on_result: Callable[[], Any],
) -> tuple[dict[Task, FoldResult], dict[Task, Exception]]:
    """Run tasks, here or by an executor; each result is stored as it comes, and a stored one is not run again.

    Returns
    -------
    Results, and the error of each task that failed. An interruption cancels what has not begun.
    """
    results: dict[Task, FoldResult] = {}
    errors: dict[Task, Exception] = {}
    todo = []
    for task in tasks:
        stored = None if store is None else store.read(task)
        if stored is None:
            todo.append(task)
        else:
            results[task] = stored
            on_result()
    for task, outcome in _outcomes(todo, executor):
        try:
            results[task] = outcome()
        except Exception as error:  # noqa: BLE001 - one fold's failure is reported by name, the others go on
            logger.warning("%s failed: %s: %s", task.name, type(error).__name__, error)
            errors[task] = error
        else:
            if store is not None:
                store.write(task, results[task])
        on_result()
    return results, errors


def _outcomes(tasks: Sequence[Task], executor: Executor | None) -> Iterator[tuple[Task, Callable[[], FoldResult]]]:
    """Tasks as they end, with what gives the result or raises the error."""
    if executor is None:
        for task in tasks:
            yield task, lambda task=task: run_task(task)  # type: ignore[misc]
        return
    futures: dict[Future[FoldResult], Task] = {executor.submit(run_task, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        for future in futures:
            future.cancel()
