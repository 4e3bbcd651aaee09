"""Folds as tasks: described whole, run here or by an executor, stored as they end."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from .._executor import outcomes
from .._settings import settings as package_settings
from .._version import __version__
from ..device import resolve_device
from ..evaluation import section_scores, tidy
from ..features import SHUFFLENET
from ..fingerprint import content_hash
from ..methods import fit_method, method_config
from ..model import HGGEP
from ..nn import state_hash
from ..record import confidence_of, prediction_record
from ..weights import locate_weights
from .folds import Fold, FoldResult, Task
from .store import FoldStore

logger = logging.getLogger(__name__)


def tasks_of(
    folds: Sequence[Fold],
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    shared: Mapping[str, Any],
) -> list[Task]:
    """Return every fold by every method with every seed, all settings filled in.

    Parameters
    ----------
    folds
        What `leave_out` returned.
    methods
        Arguments of `hggep_sc.tl.fit` by name: method, preset, config, encoder, weights, validation.
    seeds
        One or more.
    shared
        Arguments that hold for all: genes (names or a number), weights, normalize, validation (of the network
        alone) and device.

    Raises
    ------
    ValueError, TypeError
        For a method or setting that does not exist, or methods on different expression scales.
    """
    settings = {name: _settings(name, options, shared) for name, options in methods.items()}
    _require_one_scale({name: arguments["config"] for name, arguments in settings.items()})
    slots = {arguments["encoder"] for arguments in settings.values() if isinstance(arguments["encoder"], str)}
    slots -= {SHUFFLENET}
    sections = {section.name: section for fold in folds for section in (*fold.training, *fold.test)}
    portable = {name: section.portable(sorted(slots)) for name, section in sections.items()}
    contents = {name: content_hash(section) for name, section in portable.items()}
    encoders = {name: _encoder_entry(arguments) for name, arguments in settings.items()}
    weights = {name: _file_hash(arguments["weights"]) for name, arguments in settings.items()}
    tasks = []
    for fold in folds:
        training, test = ([portable[section.name] for section in part] for part in (fold.training, fold.test))
        groups = [section.group for section in training]
        for name, arguments in settings.items():
            for seed in seeds:
                described = {
                    "hggep_sc": __version__,
                    # in this order, on which random numbers depend
                    "training": [(section.name, contents[section.name]) for section in training],
                    "test": [(section.name, contents[section.name]) for section in test],
                    "seed": seed,
                    "method": arguments["method"],
                    "config": arguments["config"].to_dict(),
                    "genes": arguments["genes"],
                    "validation": arguments["validation"],
                    "weights": weights[name],
                    **encoders[name],
                    **({"groups": groups} if any(groups) else {}),
                }
                identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()
                own = {**arguments, "seed": seed}
                tasks.append(Task(fold.name, name, seed, training, test, own, asdict(package_settings), identity))
    return tasks


def _settings(name: str, options: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `fit_method` for one entry of `methods`."""
    known = {"method", "preset", "config", "encoder", "weights", "validation"}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"methods[{name!r}] has {', '.join(unknown)}; it may have {', '.join(sorted(known))}. Genes, expression "
            "scale and device are the same for all: give them to cross_validate"
        )
    given = {"encoder": SHUFFLENET, **shared, **options}
    method = given.pop("method", "hggep")
    how = {key: given.pop(key) for key in ("preset", "config") if key in given}
    config = method_config(method, normalize=given.pop("normalize"), **how)
    if method != "hggep":
        if "validation" in options:
            raise ValueError(f"methods[{name!r}]: validation= is for the network; method={method!r} has no epochs")
        given["validation"] = None
    validation = given["validation"]
    if validation is not None and not (isinstance(validation, int | float) and 0 < validation < 1):
        raise ValueError(f"validation={validation!r} must be a fraction of every section's spots, between 0 and 1")
    if method == "gene_mean" or given["encoder"] != SHUFFLENET:  # nothing is to be downloaded for it
        given["weights"] = None
    return {"method": method, "config": config, "progress": False, **given}


def _require_one_scale(configs: Mapping[str, Any]) -> None:
    """Refuse to compare methods whose counts are scaled by different totals; bases of logarithms do not matter."""
    scales = {name: (config.normalize, config.target_sum) for name, config in configs.items()}
    if len(set(scales.values())) > 1:
        found = "; ".join(f"{name!r}: {total} scaled to {target:g}" for name, (total, target) in scales.items())
        raise ValueError(
            f"the methods are on different expression scales ({found}), so that their figures cannot be compared: "
            "give normalize= to cross_validate, and one target_sum"
        )


def _encoder_entry(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what a result depends on of the encoder: its name, or a hash where it is a module of the user's."""
    encoder: str | nn.Module = arguments["encoder"]
    if encoder == SHUFFLENET:
        return {}
    return {"encoder": encoder if isinstance(encoder, str) else state_hash(encoder)}


def _file_hash(weights: str | Path | None) -> str | None:
    path = locate_weights(weights)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def run_task(task: Task) -> FoldResult:
    """Fit on the training sections of a fold, predict and score the others."""
    import platform

    import torch

    package_settings.take(task.package_settings)
    device = resolve_device(task.settings["device"])
    started = time.perf_counter()
    model = fit_method(task.training, **task.settings)
    fitted = time.perf_counter()
    predictions = {section.name: model.predict(section, device=str(device))[0] for section in task.test}
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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "hggep_sc": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "error": "",
    }
    confidence = confidence_of(model, list(predictions.values()))
    uncertainties = dict(zip(predictions, confidence["uncertainties"], strict=True)) if confidence else None
    table = pd.concat(scores, ignore_index=True)
    return FoldResult(model.genes, predictions, records, table, facts, confidence.get("reliability"), uncertainties)


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
    for task, outcome in outcomes(run_task, todo, executor):
        try:
            results[task] = outcome()
        except Exception as error:  # noqa: BLE001 - one fold's failure is reported by name, the others go on
            logger.warning("%s failed: %s: %s", task.name, type(error).__name__, error)
            errors[task] = error
        else:
            _keep(store, task, results[task])
        on_result()
    return results, errors


def _keep(store: FoldStore | None, task: Task, result: FoldResult) -> None:
    """Store a result; a full disk, or whatever a library makes of it, costs the file, not the run."""
    if store is None:
        return
    try:
        store.write(task, result)
    except Exception as error:  # noqa: BLE001 - as above
        logger.warning(
            "%s could not be stored, and will be run again by the next call: make room in %s. Its result is returned "
            "all the same. %s",
            task.name,
            store.path,
            error,
        )
