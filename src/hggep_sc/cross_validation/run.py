"""Folds as tasks: described whole, run here or by an executor, stored as they end."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from .._settings import settings as package_settings
from .._version import __version__
from ..encoders.named import calibration
from ..encoders.registry import AUTO, SHUFFLENET, known_here, load, portable_encoder
from ..encoders.side_by_side import Known
from ..encoders.weights import PRETRAINED, locate_weights
from ..errors import FailedWarning, HggepWarning
from ..evaluation.section_scores import FIGURES, section_scores, tidy
from ..features.encoders import is_slot, require_one_meaning
from ..methods.registry import fit_method, predict_section, reads_image, settings_hash
from ..nn import state_hash
from ..prediction.record import confidence_of, prediction_record, told
from ..runtime.device import resolve_device
from ..runtime.executor import outcomes
from ..runtime.messages import warn
from ..section import Section
from ..section.expression import ExpressionScale
from ..section.fingerprint import content_hash
from .folds import Fold, FoldResult, Task
from .store import FoldStore


def encoders_of(methods: Mapping[str, Mapping[str, Any]], sections: Sequence[Section]) -> list[Known]:
    """Return the encoders that are known by name, loaded: as long as they are held, folds do not load them anew.

    Raises
    ------
    InputError, MissingSlotError
        If a name is that of an encoder and of embeddings, or of neither.
    """
    found = []
    for arguments in methods.values():
        encoder = arguments["encoder"]
        if isinstance(encoder, str) and encoder not in (SHUFFLENET, AUTO) and "encoder" in arguments["method"].takes:
            require_one_meaning(encoder, sections)
            found += [] if is_slot(encoder) else [load(encoder, arguments["weights"])]
    return found


def tasks_of(folds: Sequence[Fold], methods: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[Task]:
    """Return every fold by every method with every seed.

    Parameters
    ----------
    folds
        What `leave_out` returned.
    methods
        What `settings_of` returned.
    seeds
        One or more.
    """
    slots = {arguments["encoder"] for arguments in methods.values() if is_slot(arguments["encoder"])}
    sections = {id(section): section for fold in folds for section in (*fold.training, *(t.section for t in fold.test))}
    portable = {key: section.portable(sorted(slots)) for key, section in sections.items()}
    looks = any(reads_image(arguments["method"], arguments["encoder"]) for arguments in methods.values())
    contents = {key: content_hash(section, looks=looks) for key, section in portable.items()}
    encoders = {name: _encoder_entry(arguments) for name, arguments in methods.items()}
    own_settings = {name: settings_hash(arguments["method"]) for name, arguments in methods.items()}
    weights = {name: _file_hash(arguments) for name, arguments in methods.items()}
    tasks = []
    for fold in folds:
        training = [portable[id(section)] for section in fold.training]
        test = [replace(tested, section=portable[id(tested.section)]) for tested in fold.test]
        groups = [section.group for section in training]
        blocks = [tested.spots.tolist() for tested in test if tested.spots is not None]
        for name, arguments in methods.items():
            for seed in seeds:
                described = {
                    "hggep_sc": __version__,
                    # in this order, on which random numbers depend
                    "training": [(section.name, contents[id(section)]) for section in fold.training],
                    "test": [(tested.section.name, contents[id(tested.section)]) for tested in fold.test],
                    "seed": seed,
                    "method": arguments["method"].method,
                    "config": None if (config := arguments["config"]) is None else config.to_dict(),
                    "genes": arguments["genes"],
                    "genes_by": arguments["genes_by"],
                    "validation": arguments["validation"],
                    "weights": weights[name],
                    **package_settings.of_features(),
                    **encoders[name],
                    **({} if (of_user := own_settings[name]) is None else {"settings": of_user}),
                    **({"groups": groups} if any(groups) else {}),
                    **({"blocks": blocks} if blocks else {}),
                }
                identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()
                own = {**arguments, "seed": seed, "encoder": portable_encoder(arguments["encoder"])}
                tasks.append(Task(fold.name, name, seed, training, test, own, asdict(package_settings), identity))
    return tasks


def _encoder_entry(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what a result depends on of the encoder: the name of embeddings, or a hash of the network."""
    encoder: str | nn.Module = arguments["encoder"]
    if encoder in (SHUFFLENET, AUTO):  # whose weights are asked after by themselves; of a rival its own backbone
        return {}
    if is_slot(encoder):
        return {"encoder": str(encoder)}
    network = load(encoder, arguments["weights"]) if isinstance(encoder, str) else encoder
    if not isinstance(network, Known):
        return {"encoder": state_hash(network)}
    # weights do not tell all of what is computed from them
    told = " ".join(f"{value:.3g}" for one in network.members for value in calibration(one, network.info.px))
    return {"encoder": f"{network.id} {told}"}


def _file_hash(arguments: Mapping[str, Any]) -> str | None:
    """Return a hash of the weights of HGGEP's own encoder, or of a rival's backbone; those of others are in theirs."""
    encoder, weights = arguments["encoder"], arguments["weights"]
    if encoder == AUTO and weights in PRETRAINED:
        return str(weights)  # of which there is one file
    path = locate_weights(weights) if encoder in (SHUFFLENET, AUTO) else None
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def run_task(task: Task) -> FoldResult:
    """Fit on the training sections of a fold, predict and score the others."""
    import platform

    import torch

    package_settings.take(task.package_settings)
    settings = {**task.settings, "encoder": known_here(task.settings["encoder"])}
    device = resolve_device(settings["device"])
    started = time.perf_counter()
    model = fit_method(task.training, **settings)
    fitted = time.perf_counter()
    predictions = {}
    for tested in task.test:  # whole, as `tl.predict` would; what is scored are spots that were left out of training
        expression = predict_section(model, tested.section, device=str(device))[0]
        predictions[tested.section.name] = expression if tested.spots is None else expression[tested.spots]
    predicted = time.perf_counter()
    scored = [tested.scored for tested in task.test]
    records = {section.name: prediction_record(model, [section]) for section in scored}
    facts = {
        **task.facts,
        "role": ", ".join(dict.fromkeys(role for record in records.values() for role in record["sections"]["role"])),
        "n_genes": len(model.genes),
        "n_spots": sum(len(section.xy) for section in scored),
        "model": model.id,
        "epochs": len(told(model, "history")),
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
    scores = scores_of(task, model.genes, predictions, model.scale)
    return FoldResult(
        list(model.genes), predictions, records, scores, facts, confidence.get("reliability"), uncertainties
    )


def scores_of(
    task: Task, genes: Sequence[str], predictions: Mapping[str, np.ndarray], scale: ExpressionScale
) -> pd.DataFrame:
    """Score the predictions of a task's test sections, (n_spots, n_genes) each; a tidy table."""
    scores = []
    for section in (tested.scored for tested in task.test):
        there = np.flatnonzero(np.isin(genes, section.var_names))
        names, predicted = [genes[int(j)] for j in there], predictions[section.name][:, there]
        figures = section_scores(section.table, section.obs_rows, predicted, names, scale)
        scores.append(tidy(figures, fold=task.fold, section=section.name, method=task.method, seed=task.seed))
    return pd.concat(scores, ignore_index=True)


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
            if not set(FIGURES) <= set(stored.scores["metric"]):  # stored by a version that knew fewer
                scale = ExpressionScale.of_record(next(iter(stored.records.values())))
                stored = replace(stored, scores=scores_of(task, stored.genes, stored.predictions, scale))
            results[task] = stored
            on_result()
    for task, outcome in outcomes(run_task, todo, executor):
        try:
            results[task] = outcome()
        except HggepWarning:  # which the user's filters make an error
            raise
        except Exception as error:  # noqa: BLE001 - one fold's failure is reported by name, the others go on
            warn(f"{task.name} failed: {type(error).__name__}: {error}", FailedWarning)
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
        warn(
            f"{task.name} could not be stored, and will be run again by the next call: make room in {store.path}. Its "
            f"result is returned all the same. {error}",
            FailedWarning,
        )
