import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from .. import _keys
from .._settings import settings
from .._validators import by_name, executor_or_none, flag_or_none, names, path_or_none, seed_of, whole, whole_or_none
from ..cross_validation import (
    FACTS,
    CrossValidation,
    Fold,
    FoldResult,
    FoldStore,
    Task,
    leave_out,
    run_tasks,
    tasks_of,
)
from ..device import require_device_name
from ..section import (
    Section,
    gene_name_hint,
    grouped,
    groups_in,
    open_sections,
    require_key,
    require_writable,
    table_of,
    write_prediction,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    Data: TypeAlias = AnnData | SpatialData

logger = logging.getLogger(__name__)


def cross_validate(
    data: "Data | Sequence[Data] | Mapping[str, Data]",
    *,
    groups: Mapping[str, str] | str | None = None,
    n_folds: int | None = None,
    only: Sequence[str] | None = None,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("gene_mean", "low_rank_ridge", "hggep"),
    seeds: int | Sequence[int] = 0,
    genes: Sequence[str] | int | None = None,
    weights: str | Path | None = "imagenet",
    normalize: Literal["library", "panel"] | None = None,
    validation: float | None = None,
    path: str | Path | None = None,
    executor: Executor | None = None,
    key_added: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    device: str = "auto",
    progress: bool | None = None,
    overwrite: bool = False,
) -> CrossValidation:
    """Predict every section by models that never saw it, and score them: the number to trust.

    Genes, expression scale, regularisation and stopping are chosen inside each fold, on its training sections
    alone; a test section gives its image and coordinates to the prediction, and its counts to the score.

    Parameters
    ----------
    data
        Sections with image, coordinates and raw counts, as in `hggep_sc.tl.fit`; at least two.
    groups
        What is left out together, such as the sections of a patient: a dict of group by section name, or an `obs`
        column that is constant within each section. None leaves one section out at a time. Inside each fold, what is
        learnt on left-out training sections is so, too.
    n_folds
        Number of folds, among which sections or groups are dealt in turn; None for one fold each.
    only
        Names of the folds to run now: of the section or group that each leaves out, "1", "2", ... with `n_folds`. None
        for all. The others' sections are learnt from all the same; `path` brings parts together.
    methods
        Names as in `tl.fit(method=)`; or a dict of arguments of `tl.fit` by a name of your choice:
        `{"ridge": {"method": "ridge"}, "no GEM": {"config": {"gem": False}}, "paper": {"preset": "paper"}}`.
    seeds
        One seed or several; each method is run with each.
    genes, weights, normalize, validation
        As in `tl.fit`, for every method; `validation` (a fraction) is for the network alone.
    path
        Folder where each fold is stored as it ends (h5ad). On a rerun stored folds are read, not run, if nothing
        that they depend on has changed: sections, settings, seed, weights and version of the package.
    executor
        Where folds are run: any `concurrent.futures.Executor`, such as a `ProcessPoolExecutor`,
        `dask.distributed`'s `client.get_executor()` or `mpi4py.futures.MPIPoolExecutor`. None: one after another, here.
    key_added
        Write each method's predictions into the sections as `layers[f"{key_added}_{method}"]` (and with several
        seeds `f"{key_added}_{method}_{seed}"`; a space in a name becomes "_"), as `tl.predict` does. None leaves
        `data` as it is.
    mpp, layer, library_key, spatial_key, image_key, shapes_key, table_key, coordinate_system, device
        As in `tl.fit`.
    progress
        Show a progress bar over folds; None for `hggep_sc.settings.progress`.
    overwrite
        Of `key_added`, as in `tl.predict`.

    Returns
    -------
    `CrossValidation`: a tidy `table` of figures per gene, a table of `folds`, `summary()` with confidence intervals
    and `comparison()` of the methods fold by fold. A fold that fails is warned of, listed in `folds` with its error,
    and leaves the others alone.

    Raises
    ------
    ValueError, KeyError, TypeError, FileNotFoundError
        For input that cannot be used; the message names the slot and the remedy.
    RuntimeError
        If every fold failed.
    """
    executor, folder = executor_or_none("executor", executor), path_or_none("path", path)
    n_folds = whole_or_none("n_folds", n_folds, least=2)
    flag_or_none("progress", progress)
    require_device_name(device)
    path_or_none("weights", weights)
    if key_added is not None:
        require_key(key_added)
    sections = open_sections(
        data,
        library_key=library_key,
        spatial_key=spatial_key,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        layer=layer,
        mpp=mpp,
    )
    for section in sections:
        if not section.library().any():  # which refuses what is no raw count
            raise ValueError(f"section {section.name!r} has no counts to learn from and compare with: give layer=")
        section.counts([section.var_names[0]])  # refuses genes that are there twice
    sections = grouped(sections, groups)
    folds = _chosen(leave_out(sections, n_folds), only)
    _warn_of_known_patients(sections, folds)
    if genes is not None:
        genes = whole("genes", genes) if isinstance(genes, Number) else names("genes", genes)
    shared_genes = _shared_genes(sections, genes)
    if isinstance(methods, str) or not methods:
        raise ValueError(f"methods={methods!r} must be a list of names, or a dict of settings by name")
    if isinstance(methods, Mapping):
        runs = by_name("methods", methods)
    else:
        runs = {name: {"method": name} for name in names("methods", methods)}
    for name, options in runs.items():
        by_name(f"methods[{name!r}]", options)
    seeds = _distinct(seeds)
    tasks = tasks_of(
        folds,
        runs,
        seeds,
        shared={"genes": genes, "weights": weights, "normalize": normalize, "validation": validation, "device": device},
    )
    objects = _objects(data)
    keys = {} if key_added is None else _keys_added(key_added, runs, seeds)
    read = {"layers": layer, "obs": library_key, "obsm": spatial_key}
    reads = [(slot, name) for slot, name in read.items() if name is not None]
    for key in keys.values():
        for _, item in objects:
            require_writable(item, shared_genes, key=key, table_key=table_key, overwrite=overwrite, reads=reads)

    from tqdm.auto import tqdm

    show = settings.progress if progress is None else progress
    with tqdm(total=len(tasks), desc="cross-validation", unit="fold", disable=not show) as bar:
        results, errors = run_tasks(
            tasks, executor=executor, store=None if folder is None else FoldStore(folder), on_result=bar.update
        )
    if not results:
        task, error = next(iter(errors.items()))
        raise RuntimeError(f"every fold failed; {task.name}: {type(error).__name__}: {error}") from error
    _warn_of_known_spots(results)
    for (name, seed), key in keys.items():
        of_run = {task.fold: result for task, result in results.items() if (task.method, task.seed) == (name, seed)}
        _write(
            objects,
            sections,
            of_run,
            key,
            layer=layer,
            library_key=library_key,
            table_key=table_key,
            overwrite=overwrite,
        )
    return _collected(tasks, results, errors)


def _objects(data: Any) -> "list[tuple[str, Data]]":
    """Objects with the start of their sections' names, where those come from a dict."""
    if isinstance(data, Mapping):
        return [(f"{label}/", item) for label, item in data.items()]
    return [("", item) for item in (data if isinstance(data, list | tuple) else [data])]


def _chosen(folds: Sequence[Fold], only: Sequence[str] | None) -> list[Fold]:
    """Return the folds of these names."""
    if isinstance(only, str):
        only = [only]
    wanted = {fold.name for fold in folds} if only is None else set(names("only", only))
    if not wanted or (unknown := sorted(wanted - {fold.name for fold in folds})):
        raise ValueError(
            f"only={only!r} must name some of the folds: {', '.join(repr(fold.name) for fold in folds)}"
            + (f"; there is no {', '.join(map(repr, unknown))}" if wanted else "")
        )
    return [fold for fold in folds if fold.name in wanted]


def _warn_of_known_patients(sections: Sequence[Section], folds: Sequence[Fold]) -> None:
    """Say so where the sections tell whose they are, and a test section's patient is in training."""
    for column in _keys.PATIENTS:
        if not all(column in section.table.obs for section in sections):
            continue
        try:
            patient = groups_in(sections, column)
        except ValueError:  # not one per section, so it does not tell sections apart
            continue
        known = [
            section.name
            for fold in folds
            for section in fold.test
            if patient[section.name] in {patient[other.name] for other in fold.training}
        ]
        if known:
            logger.warning(
                "sections %s are predicted by models trained on others of the same patient (obs[%r]), which tells how "
                "well a further section of a known patient is predicted, not a new patient; for that, groups=%r leaves "
                "out all sections of a patient",
                ", ".join(known),
                column,
                column,
            )
        return


def _distinct(seeds: int | Sequence[int]) -> list[int]:
    found = np.atleast_1d(np.asarray(seeds))
    if not found.size or found.dtype.kind not in "iu" or found.ndim > 1 or len(np.unique(found)) < found.size:
        raise ValueError(f"seeds={seeds!r} must be one whole number, or several different ones")
    return [seed_of("seeds", seed) for seed in found]


def _shared_genes(sections: Sequence[Section], genes: Sequence[str] | int | None) -> list[str]:
    """Genes that all sections hold; those that are asked for must be among them."""
    if isinstance(genes, list):
        for section in sections:
            section.counts(list(genes))  # names the section, the genes and the remedy
        return list(genes)
    shared = sections[0].var_names
    for section in sections[1:]:
        shared = shared.intersection(section.var_names, sort=False)
        if shared.empty:
            raise ValueError(
                f"sections {sections[0].name!r} to {section.name!r} have no gene in common: bring var_names to one "
                "kind of names." + gene_name_hint(sections[0].var_names.tolist(), section.var_names.tolist())
            )
    most = max(len(section.var_names) for section in sections)
    if len(shared) < most:
        logger.warning(
            "sections do not hold the same genes (%d of up to %d in all): each fold scores those that its test section "
            "has; name genes= to score the same everywhere",
            len(shared),
            most,
        )
    return shared.tolist()


def _keys_added(key_added: str, methods: Mapping[str, Any], seeds: Sequence[int]) -> dict[tuple[str, int], str]:
    """Layer of each method and seed; what a slot's name cannot hold, such as a space, becomes "_"."""
    keys = {
        (name, seed): f"{key_added}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}" + (f"_{seed}" if len(seeds) > 1 else "")
        for name in methods
        for seed in seeds
    }
    if len(set(keys.values())) < len(keys):
        raise ValueError(f"the names of methods would share layers ({', '.join(keys.values())}): name them otherwise")
    return keys


def _warn_of_known_spots(results: Mapping[Task, FoldResult]) -> None:
    """Say so where a test section was in training under another name."""
    known = {
        f"{name} (fold {task.fold})"
        for task, result in results.items()
        for name, record in result.records.items()
        if "train" in list(record["sections"]["role"])
    }
    if known:
        logger.warning(
            "%s: counts or coordinates of most spots are those of a training section. Is one section there under two "
            "names? Its score is none of a held-out section then",
            ", ".join(sorted(known)),
        )


def _write(
    objects: "Sequence[tuple[str, Data]]",
    sections: Sequence[Section],
    results: Mapping[str, FoldResult],
    key: str,
    *,
    layer: str | None,
    library_key: str | None,
    table_key: str | None,
    overwrite: bool,
) -> None:
    """Write one method's predictions into every object whose sections were all predicted, of the same genes."""
    of_section = {name: result for result in results.values() for name in result.predictions}
    for prefix, item in objects:
        table = table_of(item, table_key)
        here = [section for section in sections if section.table is table]
        parts = [of_section[section.name] for section in here if section.name in of_section]
        if len(parts) < len(here) or any(part.genes != parts[0].genes for part in parts):
            logger.warning(
                "layers[%r] is not written for %s: a fold failed, or folds chose different genes; name genes= to have "
                "the same everywhere",
                key,
                ", ".join(section.name for section in here),
            )
            continue
        records = [part.records[section.name] for part, section in zip(parts, here, strict=True)]
        record = {**records[0], "model": ", ".join(dict.fromkeys(str(r["model"]) for r in records))}
        record["sections"] = {
            name: np.concatenate([r["sections"][name] for r in records]) for name in records[0]["sections"]
        }
        record["sections"]["name"] = np.array([section.name.removeprefix(prefix) for section in here], dtype=object)
        record |= {} if layer is None else {"counts_layer": layer}
        record |= {} if library_key is None else {"library_key": library_key}
        # of another fold's model it would tell of sections that are tested here
        reliability = parts[0].reliability if all(part is parts[0] for part in parts) else None
        uncertainties = [
            part.uncertainties[section.name]
            for part, section in zip(parts, here, strict=True)
            if part.uncertainties is not None
        ]
        try:
            write_prediction(
                item,
                here,
                [(part.predictions[section.name], None) for part, section in zip(parts, here, strict=True)],
                genes=parts[0].genes,
                key=key,
                params=record,
                reliability=reliability,
                uncertainties=uncertainties if len(uncertainties) == len(parts) else None,
                table_key=table_key,
                overwrite=overwrite,
            )
        except ValueError as error:  # memory for one layer more is not there: the scores are worth more than it
            logger.warning("layers[%r] is not written: %s", key, error)


def _collected(
    tasks: Sequence[Task], results: Mapping[Task, FoldResult], errors: Mapping[Task, Exception]
) -> CrossValidation:
    """Tables in the order of the tasks, whatever order they ended in."""
    facts = []
    for task in tasks:
        if task in results:
            facts.append(results[task].facts)
            continue
        failed = {
            "fold": task.fold,
            "method": task.method,
            "seed": task.seed,
            "test": ", ".join(section.name for section in task.test),
            "training": ", ".join(section.name for section in task.training),
            "error": f"{type(errors[task]).__name__}: {errors[task]}",
        }
        facts.append(failed)
    table = pd.concat([results[task].scores for task in tasks if task in results], ignore_index=True)
    return CrossValidation(table, pd.DataFrame(facts, columns=FACTS))
