from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from .. import _keys
from ..cross_validation import PROBES, held_out_predictions, leave_out
from ..encoders.registry import require_weights
from ..evaluation.predictability import agreement_of, over_genes
from ..methods.baselines import BASELINES
from ..methods.registry import get, method_config, reads_image, seen_through
from ..runtime.device import resolve_device, threads_of_torch
from ..runtime.validators import choice, flag_or_none, seed_of, whole_or_none
from ..section import grouped, open_sections, require_counts
from ..section.expression import ExpressionScale
from ._cross_validate import largest_fields, say_what_blocks_tell, warn_of_known_patients

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import nn

    from ..methods.baselines import BaselineConfig

    Data: TypeAlias = AnnData | SpatialData


def predictability(
    data: "Data | Sequence[Data] | Mapping[str, Data]",
    *,
    probe: Literal["low_rank_ridge", "ridge"] = "low_rank_ridge",
    genes: Iterable[str] | str | int | None = None,
    genes_by: Literal["moran", "dispersion", "mean"] = "moran",
    groups: Mapping[str, str] | str | None = None,
    n_folds: int | None = None,
    config: "BaselineConfig | Mapping[str, Any] | None" = None,
    encoder: "str | nn.Module" = "auto",
    weights: str | Path | None = "pretrained",
    normalize: Literal["library", "panel"] | None = None,
    mpp: float | Mapping[str, float] | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Tell which genes the image can predict at all, before a network is trained.

    A linear probe on the image's features predicts every section from the others. What it reaches is set against what
    counts as few as these allow, and against maps that are as smooth but lie elsewhere. The image also tells how much
    was counted at a spot, which log expression follows: a gene has to be predicted beyond that. It takes minutes on a
    CPU, most of them for the features. The verdict is on these features and a linear probe: a gene that does not pass
    may still be told by another encoder, or from more sections.

    Parameters
    ----------
    data
        Sections with image, coordinates and raw counts, as in `hggep_sc.tl.fit`. Each is predicted by a probe of the
        others. Of one alone, or of one group, spatial blocks are, by a probe of what is far enough from them; that
        tells of other tissue of the same section, and is higher than for another section.
    probe
        "low_rank_ridge" or "ridge", of `hggep_sc.baselines`; the first predicts what genes have in common, the second
        every gene by itself. Penalties are chosen on each fold's training side.
    genes, genes_by
        As in `hggep_sc.tl.fit`; a number of genes is chosen once, on all sections.
    groups, n_folds
        What is left out together, such as the sections of a patient, and how many folds there are, as in
        `hggep_sc.tl.cross_validate`.
    config, encoder, weights, normalize
        As in `hggep_sc.tl.fit` for the probe.
    mpp, layer, library_key, spatial_key, image_key, shapes_key, table_key, coordinate_system, device
        As in `hggep_sc.tl.fit`.
    seed
        Determines the motions of the spatial null, the splits of the ceiling and the blocks by which a probe of one
        section chooses its penalty.
    progress
        Show a progress bar over sections; None for `hggep_sc.settings.progress`.

    Returns
    -------
    A row per gene, the most certain first:

    - `pcc`: Pearson correlation of the held-out prediction with log expression over a section's spots
    - `ceiling`: the correlation that a perfect predictor could reach, given the counts
      (`hggep_sc.metrics.noise_ceiling`)
    - `pcc_beyond_depth`, `ceiling_beyond_depth`: the same without what depth tells, the total that counts are scaled
      by: partial correlations, given a quadratic function of its logarithm
    - `share`: `pcc_beyond_depth` over `ceiling_beyond_depth`; it may exceed 1, as both are estimates, and is NaN where
      that ceiling is 0
    - `p`: one-sided p-value of `pcc_beyond_depth`, against predicted maps moved over the section (the spatial null of
      `hggep_sc.tl.evaluate`), sections combined as there
    - `q`: the same adjusted for the number of genes (false discovery rate, Benjamini and Hochberg 1995)
    - `n_sections`: in how many sections the gene varies: figures are means over these; of 0 all else is NaN

    `attrs["share_of_ceiling"]` is the mean `pcc_beyond_depth` over the mean `ceiling_beyond_depth`, and
    `attrs["folds"]` names what was left out in turn. Nothing is written to `data`.

    Raises
    ------
    InputError, ImageError, MissingSlotError
        For sections that cannot be used; the message names the slot and the remedy.
    ValueError, KeyError, TypeError, FileNotFoundError
        For other arguments that cannot.
    """
    method = get(choice("probe", probe, PROBES))
    used = method_config(method, config=config, normalize=normalize, encoder=encoder)
    seed, n_folds = seed_of("seed", seed), whole_or_none("n_folds", n_folds, least=2)
    flag_or_none("progress", progress)
    encoder = seen_through(method, encoder, weights, used)
    require_weights(encoder, weights)
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
        looks=reads_image(method, encoder),
    )
    require_counts(sections)
    sections = grouped(sections, groups)
    folds = leave_out(sections, n_folds, largest_fields(sections, {probe: {"config": used}}))
    if any(tested.spots is not None for fold in folds for tested in fold.test):
        say_what_blocks_tell(sections, len(folds))
    else:
        warn_of_known_patients(sections, folds)
    with threads_of_torch():
        training, known = BASELINES[probe].gathered(
            sections, used, genes, genes_by, encoder, weights, seed, resolve_device(device), progress
        )
    chosen, scale = known["genes"], ExpressionScale(used.normalize, used.target_sum, used.log_base)
    # what was gathered is of the spots with counts alone
    totals = [scale.totals(section.counts(chosen), section.library()) for section in sections]
    counted = [section.subset(total > 0) for section, total in zip(sections, totals, strict=True)]
    ends = np.cumsum([len(section.xy) for section in counted])[:-1]
    predicted = held_out_predictions(
        counted,
        folds,
        np.split(training.features, ends),
        np.split(training.targets, ends),
        probe=probe,
        alphas=used.alphas,
        rank=used.rank,
        seed=seed,
    )
    table = over_genes(
        [agreement_of(*one, chosen, scale, seed) for one in zip(counted, predicted, strict=True)], chosen
    )
    table.attrs["folds"] = [fold.name for fold in folds]
    return table
