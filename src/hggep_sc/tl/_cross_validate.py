import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from .. import _keys
from .._settings import settings
from ..config import Config
from ..cross_validation import (
    FACTS,
    CrossValidation,
    Fold,
    FoldResult,
    FoldStore,
    ForeignResult,
    Task,
    encoders_of,
    foreign_layers,
    leave_out,
    result_moments,
    run_tasks,
    score_foreign,
    settings_of,
    tasks_of,
    training_statistics,
)
from ..errors import FailedWarning, InputError, LeakageWarning, ResultWarning
from ..features.patches import fields_of_view, model_mpp, model_reduction
from ..methods.genes import requested_genes
from ..methods.registry import Method, reads_image
from ..prediction.record import warn_of_neighbours
from ..runtime.device import require_device_name
from ..runtime.messages import warn
from ..runtime.progress import bar
from ..runtime.validators import choice, executor_or_none, flag_or_none, names, path_or_none, seed_of, whole_or_none
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
from ..section.fingerprint import BESIDE, HELD

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import nn

    from ..methods.baselines import BaselineConfig

    Data: TypeAlias = AnnData | SpatialData

PROBES = {"hest": "hest_ridge"}  # methods of benchmarks, by the name of the protocol


def cross_validate(
    data: "Data | Sequence[Data] | Mapping[str, Data]",
    *,
    groups: Mapping[str, str] | str | None = None,
    n_folds: int | None = None,
    only: Sequence[str] | None = None,
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]] = ("gene_mean", "low_rank_ridge", "hggep"),
    seeds: int | Sequence[int] = 0,
    genes: Iterable[str] | str | int | None = None,
    genes_by: Literal["moran", "dispersion", "mean"] = "moran",
    preset: Literal["default", "paper", "published"] | None = None,
    config: "Config | BaselineConfig | Mapping[str, Any] | None" = None,
    encoder: "str | nn.Module" = "auto",
    weights: str | Path | None = "pretrained",
    normalize: Literal["library", "panel"] | None = None,
    validation: float | None = None,
    layers: Mapping[str, str] | None = None,
    protocol: Literal["hest"] | None = None,
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
        Sections with image, coordinates and raw counts, as in `hggep_sc.tl.fit`. Of one alone, or of one group, spatial
        blocks are left out in turn, and no spot is trained on whose patches overlap with those of a block: that tells
        of other tissue of the same section, and is higher than for another section.
    groups
        What is left out together, such as the sections of a patient: a dict of group by section name, or an `obs`
        column that is constant within each section. None leaves one section out at a time. Inside each fold, what is
        learnt on left-out training sections is so, too.
    n_folds
        Number of folds, among which sections or groups are dealt in turn; None for one fold each. Of a single section
        or group the number of spatial blocks; None for five.
    only
        Names of the folds to run now: the section or group that each leaves out, "a+b" where it is several, "block 1",
        ... of a single one. None for all. The others' sections are learnt from all the same; `path` brings parts
        together.
    methods
        Names or objects as in `tl.fit(method=)`; or a dict of arguments of `tl.fit` (method, preset, config, encoder,
        weights, validation) by a label of your choice:
        `{"low_rank_ridge": {}, "rank 4": {"method": "low_rank_ridge", "config": {"rank": 4}},
        "no GEM": {"config": {"gem": False}}}`. A label that is a method's name stands for that method. Any other needs
        "method", or settings of the network (preset, config, encoder, validation), which make it HGGEP.
    seeds
        One seed or several; each method is run with each.
    genes, genes_by, weights, normalize
        As in `tl.fit`, for every method; a number of genes is chosen in each fold, on its training sections.
    preset, config, encoder, validation
        As in `tl.fit`, for every method that takes them: `config` gives each the settings that it has, and
        `validation` is a fraction. What `methods` says of one has precedence.
    layers
        Predictions of other tools, to be scored beside the methods: the layer that holds them, by a label of your
        choice. Each section's must have been made without it (of blocks, without the block), as
        log(1 + 10,000 * counts / total), the total as `normalize` says; NaN stands for genes or spots without.
    protocol
        "hest": HEST-Bench's probe, "hest_ridge", joins the methods, and `summary` takes correlations over all test
        sections of a fold at once, as that benchmark does. Its genes are those of genes=50, genes_by="dispersion" (but
        for that they are chosen inside the fold here), its folds patients. None: the methods alone, by section.
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
    and `comparison()` of the methods fold by fold, of all genes or sets of them, by section or by other usage;
    `algorithm` says what method each label stands for. A fold that fails is warned of, listed in `folds` with its
    error, and leaves the others alone.

    Raises
    ------
    InputError, ImageError, MissingSlotError
        For sections that cannot be used; the message names the slot and the remedy.
    ValueError, KeyError, TypeError, FileNotFoundError
        For other arguments that cannot.
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
    wanted, _ = requested_genes(genes, genes_by)
    for_all = {"genes": wanted, "genes_by": genes_by, "weights": weights, "normalize": normalize, "device": device}
    for_some = {"preset": preset, "config": config, "encoder": encoder, "validation": validation}
    runs = settings_of(_with_probe(methods, protocol), {**for_all, **for_some})
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
        looks=any(reads_image(arguments["method"], arguments["encoder"]) for arguments in runs.values()),
    )
    for section in sections:
        if not section.library().any():  # which refuses what is no raw count
            raise InputError(f"section {section.name!r} has no counts to learn from and compare with: give layer=")
        section.counts([section.var_names[0]])  # refuses genes that are there twice
    sections = grouped(sections, groups)
    whole = leave_out(sections, n_folds, largest_fields(sections, runs))
    folds = _chosen(whole, only)
    if any(tested.spots is not None for fold in folds for tested in fold.test):
        say_what_blocks_tell(sections, len(whole))
    else:
        warn_of_known_patients(sections, folds)
    shared_genes = _shared_genes(sections, wanted)
    foreign = foreign_layers(layers, runs, folds)
    seeds = _distinct(seeds)
    in_use = encoders_of(runs, sections)
    tasks = tasks_of(folds, runs, seeds)
    objects = _objects(data)
    keys = {} if key_added is None else _keys_added(key_added, runs, seeds)
    read = {"layers": layer, "obs": library_key, "obsm": spatial_key}
    reads = [(slot, name) for slot, name in read.items() if name is not None]
    for key in keys.values():
        for _, item in objects:
            require_writable(item, shared_genes, key=key, table_key=table_key, overwrite=overwrite, reads=reads)

    show = settings.progress if progress is None else progress
    with bar(total=len(tasks), what="cross-validation", unit="fold", show=show) as over:
        results, errors = run_tasks(
            tasks, executor=executor, store=None if folder is None else FoldStore(folder), on_result=over.update
        )
    del in_use  # folds and methods have shared them
    if not results:
        task, error = next(iter(errors.items()))
        raise RuntimeError(f"every fold failed; {task.name}: {type(error).__name__}: {error}") from error
    _warn_of_scales(results)
    _warn_of_known_spots(results)
    for (name, seed), key in keys.items():
        of_run = [(task, result) for task, result in results.items() if (task.method, task.seed) == (name, seed)]
        _write(
            objects,
            sections,
            folds,
            of_run,
            key,
            layer=layer,
            library_key=library_key,
            table_key=table_key,
            overwrite=overwrite,
        )
    pairs = [(label, name, fold) for label, name in foreign.items() for fold in folds]
    scored = [score_foreign(fold, results, label, name, seeds[0]) for label, name, fold in pairs]
    return _collected(tasks, results, errors, [score for score in scored if score is not None], protocol)


def _with_probe(methods: Any, protocol: str | None) -> Any:
    """Return the methods, and the probe of a benchmark whose protocol is asked for."""
    if protocol is None:
        return methods
    choice("protocol", protocol, PROBES)
    probe = PROBES[protocol]
    if isinstance(methods, Mapping):
        given = {label: options for label, options in methods.items() if isinstance(options, Mapping)}
        of_labels = [options.get("method", label) for label, options in given.items()]
        if probe in [getattr(one, "method", one) for one in of_labels]:
            return methods
        if own := [str(label) for label, options in given.items() if "encoder" in options]:
            raise ValueError(
                f"protocol={protocol!r} adds the probe on the encoder of all, and {', '.join(own)} of methods= have "
                "their own: give encoder= for all, or name the probe in methods= yourself, such as "
                f"{{'probe': {{'method': {probe!r}, 'encoder': ...}}}}"
            )
        return {**methods, probe: {}}
    if isinstance(methods, str) or not isinstance(methods, Sequence):  # refused later
        return methods
    return methods if probe in [getattr(one, "method", one) for one in methods] else [*methods, probe]


def largest_fields(sections: Sequence[Section], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest field of view of all methods by section, px of its image."""
    mpp, reduction = model_mpp(sections), model_reduction(sections)
    configs = [arguments["config"] or Config() for arguments in runs.values()]  # of a method without, the default's
    return {
        s.name: max(max(fields_of_view(config, mpp, s.mpp, s.reduction / reduction)) for config in configs)
        for s in sections
    }


def say_what_blocks_tell(sections: Sequence[Section], n: int) -> None:
    warn(
        f"{', '.join(section.name for section in sections)}: there is nothing else to leave out, so {n} spatial blocks "
        "serve as folds; spots whose patches overlap with those of a block are not trained on for it. Slide, staining "
        "and patient are the same on both sides: expect less of another section",
        LeakageWarning,
    )


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


def warn_of_known_patients(sections: Sequence[Section], folds: Sequence[Fold]) -> None:
    """Say so where the sections tell whose they are, and a test section's patient is in training."""
    for column in _keys.PATIENTS:
        if not all(column in section.table.obs for section in sections):
            continue
        try:
            patient = groups_in(sections, column)
        except ValueError:  # not one per section, so it does not tell sections apart
            continue
        known = [
            tested.section.name
            for fold in folds
            for tested in fold.test
            if patient[tested.section.name] in {patient[other.name] for other in fold.training}
        ]
        if known:
            warn(
                f"sections {', '.join(known)} are predicted by models trained on others of the same patient "
                f"(obs[{column!r}]), which tells how well a further section of a known patient is predicted, not a new "
                f"patient; for that, groups={column!r} leaves out all sections of a patient",
                LeakageWarning,
            )
        return


def _distinct(seeds: int | Sequence[int]) -> list[int]:
    found = np.atleast_1d(np.asarray(seeds))
    if not found.size or found.dtype.kind not in "iu" or found.ndim > 1 or len(np.unique(found)) < found.size:
        raise ValueError(f"seeds={seeds!r} must be one whole number, or several different ones")
    return [seed_of("seeds", seed) for seed in found]


def _shared_genes(sections: Sequence[Section], genes: list[str] | int | None) -> list[str]:
    """Genes that all sections hold; those that are asked for must be among them."""
    if isinstance(genes, list):
        for section in sections:
            section.counts(genes)  # names the section, the genes and the remedy
        return genes
    shared = sections[0].var_names
    for section in sections[1:]:
        shared = shared.intersection(section.var_names, sort=False)
        if shared.empty:
            raise InputError(
                f"sections {sections[0].name!r} to {section.name!r} have no gene in common: bring var_names to one "
                "kind of names." + gene_name_hint(sections[0].var_names.tolist(), section.var_names.tolist())
            )
    most = max(len(section.var_names) for section in sections)
    if len(shared) < most:
        warn(
            f"sections do not hold the same genes ({len(shared)} of up to {most} in all): each fold scores those that "
            "its test section has; name genes= to score the same everywhere",
            ResultWarning,
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


def _warn_of_scales(results: Mapping[Task, FoldResult]) -> None:
    """Say so where methods of the user's turn out to predict on another scale than the rest."""
    scales = {
        task.method: f"{record['normalize']} total scaled to {record['target_sum']:g}"
        for task, result in results.items()
        for record in result.records.values()
    }
    if len(set(scales.values())) > 1:
        each = "; ".join(f"{label!r}: {scale}" for label, scale in scales.items())
        warn(
            f"the methods are on different expression scales ({each}), so that their figures cannot be compared",
            ResultWarning,
        )


def _warn_of_known_spots(results: Mapping[Task, FoldResult]) -> None:
    """Say so where a test section was in training under another name."""
    known = {
        f"{name} (fold {task.fold})"
        for task, result in results.items()
        for name, record in result.records.items()
        if "train" in list(record["sections"]["role"])
    }
    if known:
        warn(
            f"{', '.join(sorted(known))}: counts or coordinates of most spots are those of a training section. Is one "
            "section there under two names? Its score is none of a held-out section then",
            LeakageWarning,
        )
    beside = {
        name: None
        for result in results.values()
        for name, record in result.records.items()
        if BESIDE in list(record["sections"]["role"])
    }
    warn_of_neighbours(list(beside))


def _write(
    objects: "Sequence[tuple[str, Data]]",
    sections: Sequence[Section],
    folds: Sequence[Fold],
    results: Sequence[tuple[Task, FoldResult]],
    key: str,
    *,
    layer: str | None,
    library_key: str | None,
    table_key: str | None,
    overwrite: bool,
) -> None:
    """Write one method's predictions into every object whose sections were all predicted, of the same genes."""
    scored = {(fold.name, tested.section.name): tested.scored for fold in folds for tested in fold.test}
    of_section: dict[str, list[tuple[Section, FoldResult]]] = {}
    for task, result in results:
        for name in result.predictions:
            of_section.setdefault(name, []).append((scored[task.fold, name], result))
    for prefix, item in objects:
        table = table_of(item, table_key)
        here = [section for section in sections if section.table is table]
        pairs = [pair for section in here for pair in of_section.get(section.name, [])]
        parts = [result for _, result in pairs]
        missing = sum(len(section.xy) for section in here) - sum(len(section.xy) for section, _ in pairs)
        if missing or any(part.genes != parts[0].genes for part in parts):
            warn(
                f"layers[{key!r}] is not written for {', '.join(section.name for section in here)}: a fold failed, or "
                "folds chose different genes; name genes= to have the same everywhere",
                FailedWarning,
            )
            continue
        of_blocks = [[part.records[section.name] for _, part in of_section[section.name]] for section in here]
        # a section in blocks is one section, and as much held out as the worst of them
        records = [max(blocks, key=lambda record: record["sections"]["role"][0] != HELD) for blocks in of_blocks]
        record = {
            **records[0],
            "model": ", ".join(dict.fromkeys(str(part.records[section.name]["model"]) for section, part in pairs)),
        }
        record["sections"] = {
            name: np.concatenate([r["sections"][name] for r in records]) for name in records[0]["sections"]
        }
        record["sections"]["name"] = np.array([section.name.removeprefix(prefix) for section in here], dtype=object)
        record |= {} if layer is None else {"counts_layer": layer}
        record |= {} if library_key is None else {"library_key": library_key}
        # of another fold's model it would tell of sections that are tested here
        reliability = parts[0].reliability if all(part is parts[0] for part in parts) else None
        uncertainties = [part.uncertainties[section.name] for section, part in pairs if part.uncertainties is not None]
        try:
            write_prediction(
                item,
                [section for section, _ in pairs],
                [(part.predictions[section.name], None) for section, part in pairs],
                genes=parts[0].genes,
                key=key,
                params=record,
                reliability=reliability,
                uncertainties=uncertainties if len(uncertainties) == len(pairs) else None,
                table_key=table_key,
                overwrite=overwrite,
            )
        except ValueError as error:  # memory for one layer more is not there: the scores are worth more than it
            warn(f"layers[{key!r}] is not written: {error}", FailedWarning)


def _collected(
    tasks: Sequence[Task],
    results: Mapping[Task, FoldResult],
    errors: Mapping[Task, Exception],
    foreign: Sequence[ForeignResult],
    protocol: Literal["hest"] | None,
) -> CrossValidation:
    """Tables in the order of the tasks, whatever order they ended in; other tools' predictions after them."""
    facts = [
        results[task].facts
        if task in results
        else {**task.facts, "error": f"{type(errors[task]).__name__}: {errors[task]}"}
        for task in tasks
    ]
    folds = pd.DataFrame([*facts, *(other.facts for other in foreign)], columns=FACTS)
    done = {task: results[task] for task in tasks if task in results}
    scores = [*(result.scores for result in done.values()), *(other.scores for other in foreign)]
    table = pd.concat(scores, ignore_index=True)
    algorithms = dict(zip(folds["method"], folds["algorithm"], strict=True))
    table.insert(list(table).index("method") + 1, "algorithm", table["method"].map(algorithms))
    moments = [*result_moments(done), *(part for other in foreign for part in other.moments)]
    training = [training_statistics(done)]
    for other in (other for other in foreign if other.beside):
        of_fold = training[0][(training[0][["fold", "method"]] == [other.facts["fold"], other.beside]).all(axis=1)]
        training.append(of_fold.assign(method=other.facts["method"]))
    return CrossValidation(
        table,
        folds,
        moments=pd.concat(moments, ignore_index=True),
        training=pd.concat(training, ignore_index=True),
        protocol=protocol,
    )
