from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import pandas as pd

from .. import _keys
from .._version import __version__
from ..config import Normalize
from ..errors import InputError, LeakageWarning, MissingSlotError, ResultWarning
from ..evaluation.section_scores import FIGURES, MEANS, Null, layer_scores, over_sections, section_scores
from ..prediction.record import warn_of_a_subset, warn_of_neighbours
from ..runtime.messages import warn
from ..runtime.validators import flag, seed_of, text_or_none
from ..section import (
    copy_of,
    layer_values,
    predicted_sections,
    read_prediction,
    require_free,
    require_no_backed_view,
    require_one_section,
    section_column,
    table_of,
    under_tissue,
    unmeasured,
    warn_of_replaced,
)
from ..section.expression import ExpressionScale
from ..section.fingerprint import BESIDE

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    Data = TypeVar("Data", AnnData, SpatialData)

ALPHA = 0.05


@overload
def evaluate(
    data: "Data",
    *,
    key: str | None = ...,
    layer: str | None = ...,
    observed_layer: str | None = ...,
    normalize: Normalize | None = ...,
    library_key: str | None = ...,
    null: Null = ...,
    seed: int = ...,
    table_key: str | None = ...,
    overwrite: bool = ...,
    copy: Literal[False] = ...,
) -> pd.DataFrame: ...
@overload
def evaluate(
    data: "Data",
    *,
    key: str | None = ...,
    layer: str | None = ...,
    observed_layer: str | None = ...,
    normalize: Normalize | None = ...,
    library_key: str | None = ...,
    null: Null = ...,
    seed: int = ...,
    table_key: str | None = ...,
    overwrite: bool = ...,
    copy: Literal[True],
) -> "tuple[Data, pd.DataFrame]": ...


def evaluate(
    data: "Data",
    *,
    key: str | None = None,
    layer: str | None = None,
    observed_layer: str | None = None,
    normalize: Normalize | None = None,
    library_key: str | None = None,
    null: Null = "independent",
    seed: int = 0,
    table_key: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> "pd.DataFrame | tuple[Data, pd.DataFrame]":
    """Compare predicted with observed expression, gene by gene across the spots of a section.

    The observed counts are brought to the scale that the prediction was made on, and both to the natural logarithm.
    Spots without counts, those not predicted, and those whose counts corrected the prediction (`measured=` of
    `tl.predict`) are left out; a gene that is constant has no correlation (NaN).
    Several sections in one object are compared one by one, never across. With `layer` any two layers are compared,
    such as another tool's prediction.

    Parameters
    ----------
    data
        One section or several after `hggep_sc.tl.predict`, with raw counts; or with a `layer` from elsewhere.
    key
        Name of the prediction, and of what is written; None for "hggep", or the name of `layer`.
    layer
        A layer that another tool predicted, to be compared with `observed_layer`: as they are, or by `normalize`. NaN
        stands for what is not predicted, whole genes or spots. None for the prediction of `tl.predict` called `key`.
    observed_layer
        Layer with raw counts; None for the one `predict` was given, else `X`. With `layer`, any values.
    normalize
        With `layer`: the observed layer holds raw counts, which are first brought to the scale that such predictions
        have, log(1 + 10,000 * counts / total), the total being the spot's full "library" or its counts over the genes
        compared, the "panel". None: both layers are compared as they are, without a noise ceiling.
    library_key
        With `layer`: AnnData, the `obs` column that tells several sections apart.
    null
        What the p-values are by. "independent": Student's t-test, which takes every spot for an observation of its
        own; neighbouring spots are alike, so that it calls too many genes significant. "spatial": the predicted map
        is moved over the section (turned, mirrored, shifted) 199 times and correlated anew; p is the share of maps,
        the predicted one included, that correlate as strongly, and at least 1/200.
    seed
        Determines the splits of the noise ceiling, and the motions of the spatial null.
    table_key
        SpatialData: which of several tables.
    overwrite
        Replace columns of `var` that are in the way; without it those of an earlier evaluation alone are.
    copy
        Leave `data` as it is, and return a new object beside the table.

    Returns
    -------
    Table with a row per predicted gene. Of several sections: a row per section and gene, with a first column
    `section`. With `copy=True`: the new object and the table. `attrs["roles"]` holds each section's role in training:
    "train" marks goodness of fit. Its columns are

    - `pcc`: Pearson correlation; `spearman`: of the ranks
    - `pcc_pval`, `pcc_padj`, `pcc_neg_log10_p`: the correlation's two-sided p-value, the same adjusted for the
      number of genes (Benjamini-Hochberg), and -log10 p, which does not underflow
    - `rmse`: root mean squared error, natural log units
    - `ssim`: structural similarity of the two maps on the array (`hggep_sc.metrics.ssim`, the paper's equation 20)
    - `ceiling`: the correlation that a perfect predictor of the underlying expression could reach, given the counts
      (`hggep_sc.metrics.noise_ceiling`)
    - `pcc_beyond_depth`, `ceiling_beyond_depth`: the same without what depth tells, the total that counts are scaled
      by (`hggep_sc.metrics.pearson_beyond_depth`): dense tissue has more counts, and every gene follows these
    - `moran_observed`, `moran_predicted`: Moran's I over the six nearest spots (`hggep_sc.metrics.morans_i`), how
      smooth the two maps are; a prediction is smoother than tissue, so that its own says little of a gene

    They are written to `var[f"{key}_pcc"]` and so on; of several sections the mean, and p-values combined as in a
    meta-analysis of Fisher's z. `uns[key]["metrics"]` holds means and medians over genes, the mean PCC as a share of
    the mean ceiling, how many genes are significant (PCC above 0, adjusted p below 0.05), how many genes, constant
    genes and spots there are, and per section its name, its role in training, its spots and its mean PCC.

    Raises
    ------
    MissingSlotError
        If there is no prediction under `key`, no such layer, or no column that tells several sections, or measured
        spots, apart.
    InputError
        If there are no counts to compare with.
    ValueError
        If `uns[key]` holds something else than an evaluation of `layer`, or a column of `var` that is to be written
        holds something else.
    """
    flag("copy", copy)
    seed = seed_of("seed", seed)
    for name, given in {
        "key": key,
        "layer": layer,
        "observed_layer": observed_layer,
        "library_key": library_key,
    }.items():
        text_or_none(name, given)
    target = copy_of(data) if copy else data
    table = table_of(target, table_key)
    require_no_backed_view(table)
    if layer is None and (normalize is not None or library_key is not None):
        raise ValueError("normalize= and library_key= go with layer=: of a prediction both are noted in uns[key]")
    key = (_keys.KEY if layer is None else layer) if key is None else key
    slots = [("var", _keys.metric(key, name)) for name in FIGURES]
    earlier = table.uns.get(key)
    owned = slots if isinstance(earlier, Mapping) and "metrics" in earlier else []
    replaced = require_free(table, slots, owned=owned, overwrite=overwrite, argument="key")
    if layer is None:
        scores, record = _predicted(table, key, observed_layer, null, seed)
        roles = dict(zip(record["sections"]["name"], record["sections"]["role"], strict=True))
    else:
        scores, record = _compared(table, key, layer, observed_layer, normalize, library_key, null, seed)
        roles = dict.fromkeys(scores, "unknown")
    overall = over_sections(list(scores.values()))
    summary = {"null": null, **_summary(overall), **_of_sections(scores, roles)}
    warn_of_replaced(replaced)
    for name in FIGURES:
        table.var[_keys.metric(key, name)] = overall[name].reindex(table.var_names)
    table.uns[key] = {**record, "metrics": summary}
    if len(scores) == 1:
        result = overall
    else:
        result = pd.concat([one.assign(section=name)[["section", *FIGURES]] for name, one in scores.items()])
    result.attrs["roles"] = {name: roles[name] for name in scores}
    return (target, result) if copy else result


def _predicted(
    table: "AnnData", key: str, observed_layer: str | None, null: Null, seed: int
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Scores of what `tl.predict` wrote, by section, and its record."""
    if key in table.layers and key not in table.uns:
        raise MissingSlotError(
            f"layers[{key!r}] was not written by tl.predict: uns[{key!r}] is missing. Compare it by layer={key!r} and "
            "observed_layer="
        )
    record, columns = read_prediction(table, key)
    genes = table.var_names[columns]
    scale = ExpressionScale.of_record(record)
    layer = observed_layer or record.get("counts_layer")
    known = np.isfinite(table.layers[key][:, columns]).all(axis=1)
    scored = known & unmeasured(table, record, key)
    if known.any() and not scored.any():
        raise InputError(
            f"prediction {key!r}: every predicted spot that is left corrected the prediction by its own counts "
            f"(obs[{_keys.measured(key)!r}]): there is none to score it at"
        )
    sections = _sections(table, record, key, np.flatnonzero(scored))
    warn_of_a_subset(table.n_vars, record, len(genes))
    scores = {}
    for name, spots in sections.items():
        predicted = np.asarray(table.layers[key][spots][:, columns])
        scores[name] = section_scores(table, spots, predicted, list(genes), scale, layer=layer, null=null, seed=seed)
    return scores, record


def _compared(
    table: "AnnData",
    key: str,
    layer: str,
    observed_layer: str | None,
    normalize: Normalize | None,
    library_key: str | None,
    null: Null,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Scores of any layer, by section, and the record of the comparison."""
    if key in table.uns and not (isinstance(table.uns[key], Mapping) and "layer" in table.uns[key]):
        raise ValueError(
            f"uns[{key!r}] holds something else, such as a prediction of tl.predict, which would be lost: name what is "
            "written by key="
        )
    if layer == observed_layer:
        raise ValueError(f"layer={layer!r} and observed_layer={observed_layer!r} are the same")
    if normalize not in (None, "library", "panel"):
        raise ValueError(f"normalize={normalize!r} must be 'library', 'panel' or None")
    scale = None if normalize is None else ExpressionScale(normalize)
    sections = _tissue(table, library_key)
    rows = np.concatenate(list(sections.values()))
    known = np.isfinite(layer_values(table, rows, list(table.var_names), layer)).any(axis=0)
    genes = list(table.var_names[known])
    if scale is None:
        _warn_of_counts(table, rows, genes, layer, observed_layer)
    how: dict[str, Any] = {"layer": observed_layer, "null": null, "seed": seed}
    scores = {name: layer_scores(table, spots, layer, genes, scale, **how) for name, spots in sections.items()}
    record = {"hggep_sc": __version__, "layer": layer, "observed_layer": observed_layer, "normalize": normalize}
    return scores, {name: value for name, value in record.items() if value is not None}


def _tissue(table: "AnnData", library_key: str | None) -> dict[str, np.ndarray]:
    """Rows of each section's spots under tissue."""
    column = section_column(table, library_key)
    if column is None:
        libraries = table.uns.get(_keys.SPATIAL, {})
        if len(libraries) > 1:
            raise InputError(
                f"uns['spatial'] holds several libraries ({', '.join(map(str, libraries))}), which are compared one by "
                "one: name the column of obs that says which spot is whose by library_key="
            )
        name = str(next(iter(libraries), "section"))
        return {name: under_tissue(table, np.arange(table.n_obs), name)}
    if column not in table.obs:
        raise MissingSlotError(
            f"library_key={column!r}: obs has no such column; columns: {', '.join(table.obs.columns)}"
        )
    section_of = table.obs[column]
    rows = {str(name): np.flatnonzero(section_of == name) for name in section_of.dropna().unique()}
    return {name: under_tissue(table, spots, name) for name, spots in rows.items()}


def _warn_of_counts(
    table: "AnnData", rows: np.ndarray, genes: list[str], layer: str, observed_layer: str | None
) -> None:
    """Say so where raw counts are compared with what is none."""
    predicted, observed = (layer_values(table, rows, genes, name) for name in (layer, observed_layer))
    if _are_counts(observed) and not _are_counts(predicted):
        slot = "X" if observed_layer is None else f"layers[{observed_layer!r}]"
        warn(
            f"{slot} holds raw counts, and layers[{layer!r}] other values: they are compared as they are. If those are "
            "log expression, normalize='library' brings the counts to it",
            ResultWarning,
        )


def _are_counts(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return bool((known >= 0).all() and (known == np.rint(known)).all())


def _sections(table: "AnnData", record: dict[str, Any], key: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Predicted rows of each section that is (still) in the object."""
    names = predicted_sections(record, key)
    if len(names) == 1:
        # two predictions that were joined afterwards leave the record of the first
        require_one_section(table, rows, names[0], None, list(map(str, table.uns.get(_keys.SPATIAL, {}))))
        return {names[0]: rows}
    column = section_column(table, record.get("library_key"))
    if column not in table.obs:
        raise MissingSlotError(
            f"prediction {key!r} is of {len(names)} sections ({', '.join(names[:5])}), and the column of obs that says "
            f"which spot is whose is missing: uns[{key!r}]['library_key'] names {column!r}. Evaluate them one by one"
        )
    section_of = table.obs[column].astype(str).to_numpy()[rows]
    sections = {name: rows[section_of == name] for name in names if (section_of == name).any()}
    if not sections:
        raise InputError(
            f"no predicted spots: obs[{column!r}] holds none of {', '.join(names[:5])} where layers[{key!r}] is"
        )
    return sections


def _summary(scores: pd.DataFrame) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name in MEANS:
        defined = scores[name].dropna()
        summary[f"mean_{name}"] = float(defined.mean())
        summary[f"median_{name}"] = float(defined.median())
    both = scores[["pcc", "ceiling"]].dropna().mean()
    attainable = float(both["ceiling"])
    return {
        **summary,
        "share_of_ceiling": float(both["pcc"]) / attainable if attainable > 0 else float("nan"),
        "n_significant": int(((scores["pcc_padj"] < ALPHA) & (scores["pcc"] > 0)).sum()),
        "n_genes": int(scores["pcc"].notna().sum()),
        "n_constant_genes": int(scores["pcc"].isna().sum()),
    }


def _of_sections(scores: dict[str, pd.DataFrame], roles: dict[str, str]) -> dict[str, Any]:
    """Part of the summary that is per section; those of the training are named aloud."""
    seen = [name for name in scores if roles[name] == "train"]
    if seen:
        warn(
            f"in the training: {', '.join(seen)}; the figures there are goodness of fit, not prediction",
            LeakageWarning,
        )
    warn_of_neighbours([name for name in scores if roles[name] == BESIDE])
    n_spots = np.array([table.attrs["n_spots"] for table in scores.values()])
    return {
        "n_spots": int(n_spots.sum()),
        "sections": {
            "name": np.array(list(scores), dtype=object),
            "role": np.array([roles[name] for name in scores], dtype=object),
            "n_spots": n_spots,
            "mean_pcc": np.array([table["pcc"].mean() for table in scores.values()]),
        },
    }
