"""Finished folds of a cross-validation on disk, one h5ad file each."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..storage.files import require_plain_h5ad, write_h5ad
from ..storage.replace import replacing
from .folds import FoldResult, Task

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

READABLE = 80  # letters of a fold's name that go into its file's, which file systems bound


class FoldStore:
    """A folder of results; a file's name holds the hash of all that the result depends on.

    Each file is an AnnData of the predicted spots and genes: `X` is the prediction, `obs["section"]` whose spot it
    is, `var["reliability"]` and `obs["uncertainty"]` are the model's where it has them, and `uns` holds scores and
    facts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"path={str(path)!r} is a file: name a folder for the finished folds")
        self.path.mkdir(parents=True, exist_ok=True)

    def file(self, task: Task) -> Path:
        """File of a task's result."""
        return self.path / f"{_plain(task.fold)}_{_plain(task.algorithm)}_{task.seed}_{task.identity[:16]}.h5ad"

    def read(self, task: Task) -> FoldResult | None:
        """Return the result of a task that has been run before, under whatever name; None otherwise."""
        from anndata import read_h5ad

        file = self.file(task)
        if not file.exists():
            return None
        try:
            require_plain_h5ad(file)
            result = _result(read_h5ad(file), task)
            _require_of(task, result)
            return result
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes the libraries raise
            logger.warning("%s cannot be read (%s): %s is run again", file, error, task.name)
            return None

    def write(self, task: Task, result: FoldResult) -> None:
        """Write a result, in one step: an interruption leaves no half of it."""
        from anndata import AnnData

        names = list(result.predictions)
        of_spot = np.repeat(names, [len(result.predictions[name]) for name in names])
        table = AnnData(
            np.concatenate([result.predictions[name] for name in names]),
            obs=pd.DataFrame(
                {"section": pd.Categorical(of_spot, categories=names)}, index=[str(i) for i in range(len(of_spot))]
            ),
            var=pd.DataFrame(index=result.genes),
            uns={
                "sections": np.array(names, dtype=object),
                "records": {str(i): result.records[name] for i, name in enumerate(names)},
                "scores": result.scores.set_axis(result.scores.index.astype(str)),
                "facts": result.facts,
            },
        )
        if result.reliability is not None:
            table.var["reliability"] = result.reliability
        if result.uncertainties is not None:
            table.obs["uncertainty"] = np.concatenate([result.uncertainties[name] for name in names])
        with replacing(self.file(task)) as part:
            write_h5ad(table, part, compression="gzip")


def _plain(name: str) -> str:
    """Return a name as a part of a file's."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)[:READABLE]


def _result(stored: "AnnData", task: Task) -> FoldResult:
    names = list(stored.uns["sections"])
    rows = {name: np.flatnonzero((stored.obs["section"] == name).to_numpy()) for name in names}
    scores = stored.uns["scores"].astype({"section": str, "gene": str, "metric": str})
    facts = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in stored.uns["facts"].items()
    }
    return FoldResult(
        genes=stored.var_names.tolist(),
        predictions={name: stored.X[rows[name]] for name in names},
        records={name: stored.uns["records"][str(i)] for i, name in enumerate(names)},
        scores=scores.assign(fold=task.fold, method=task.method).reset_index(drop=True),
        facts={**facts, **task.facts},
        reliability=stored.var["reliability"].to_numpy() if "reliability" in stored.var else None,
        uncertainties={name: stored.obs["uncertainty"].to_numpy()[rows[name]] for name in names}
        if "uncertainty" in stored.obs
        else None,
    )


def _require_of(task: Task, result: FoldResult) -> None:
    """Refuse a result that is not of the task's sections, or lacks what is made of it later."""
    scored = [tested.scored for tested in task.test]
    wanted = {section.name: (len(section.xy), len(result.genes)) for section in scored}
    found = {name: values.shape for name, values in result.predictions.items()}
    if found != wanted:
        raise ValueError(f"it holds predictions of {found}, and {wanted} are expected")
    if not all({"hggep_sc", "sections"} <= set(record) for record in result.records.values()):
        raise ValueError("its records are not of predictions")
    if result.scores["value"].dtype.kind != "f":
        raise ValueError("its scores are no numbers")
