from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import _keys
from .._settings import settings
from .._version import __version__
from ..features.patches import spots_per_batch
from ..features.store import use_once
from ..methods.registry import Model, predict_section, require_model, taken
from ..prediction.measured import Measured, corrected, counts_at
from ..prediction.record import confidence_of, prediction_record, told, warn_of_a_subset, warn_of_neighbours
from ..runtime.progress import of_spots
from ..runtime.validators import flag, flag_or_none, path_or_none, whole_or_none
from ..section import (
    Section,
    copy_of,
    measured_spots,
    open_sections,
    require_writable,
    table_of,
    write_prediction,
)
from ..section.fingerprint import BESIDE, sight_hash
from ..storage.checkpoint import Checkpoint, open_checkpoints

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    Data = TypeVar("Data", AnnData, SpatialData)


def predict(
    data: "Data",
    model: Model,
    *,
    key_added: str = _keys.KEY,
    library_key: str | None = None,
    library_id: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    measured: "str | np.ndarray | pd.Series | None" = None,
    device: str = "auto",
    batch_size: int | None = None,
    average_flips: bool | None = None,
    chunk_spots: int | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> "Data | None":
    """Predict the expression of the model's genes at every spot, from the H&E image alone.

    Counts are not needed, and not used for predicting, but for those of spots that `measured` names: where there are
    any, they serve to tell whether the section was among those the model was trained on.

    Parameters
    ----------
    data
        AnnData or SpatialData with an image and spot coordinates, of one section or several.
    model
        What `hggep_sc.tl.fit` or `load` of the model's class gave.
    key_added
        Name of the result.
    library_key, library_id, spatial_key, image_key, shapes_key, table_key, coordinate_system, mpp
        As in `hggep_sc.tl.fit`.
    layer
        Layer with raw counts; None for `X`.
    measured
        Spots whose own counts correct the prediction (`docs/measured.md`): name of a boolean column of `obs`, or a mask
        of n_obs values (a Series is matched by spot names). Each section needs five with counts at least, and spots
        that are not. None: no counts are used.
    device
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
    batch_size
        Spots whose patches are in memory at once; None for 64.
    average_flips
        Of a network that learns from pixels: average the predictions of the spots in eight views, turned and mirrored,
        which is nearly eight times the work. Otherwise spots are seen as they lie.
    chunk_spots
        Spots that attention and hypergraph see at once, for HGGEP alone; None for as many as the model's
        `config.chunk_spots` and free memory allow. A section with more spots is predicted in chunks of so many: half
        are predicted at most, and the others surround them. Where the GPU runs out of memory, chunks are halved.
    checkpoint_dir
        Folder for what is known so far, written at least every 512 spots. After an interruption, a kill too, the same
        call goes on from there, to the same result. The folder is yours to remove when the result is saved.
    progress
        Show a progress bar over spots; None for `hggep_sc.settings.progress`.
    overwrite
        Replace what is in the way of the result. Without it an earlier prediction under this key is replaced, and
        nothing else; what the object cannot do without, such as `uns["spatial"]`, never is.
    copy
        Return a new object instead of writing into `data`.

    Returns
    -------
    None, or the new object with `copy=True`. Written are

    - `layers[key_added]`: n_obs x n_vars, float32, log expression on the model's scale; NaN for genes the
      model does not know and spots outside the tissue
    - `var[f"{key_added}_predicted"]`: bool, whether the model knows the gene
    - `obsm[f"X_{key_added}"]`: n_obs x d, float32, the networks' latent representations, or the components that
      a low-rank ridge predicts; absent where the method has none
    - `var[f"{key_added}_reliability"]`: the gene's mean PCC over training sections that were left out in turn, and
      `obs[f"{key_added}_uncertainty"]`: the error to expect of a spot beyond counting noise, natural log units (root
      mean square over genes, level differences between sections aside); absent where the model was fitted without
      `config.cross_fit`, and for baselines. With `measured` uncertainty is that of the corrected prediction, by any
      method, and falls near measured spots; reliability is still that of the prediction without them
    - `obs[f"{key_added}_measured"]`: with `measured`: bool, whether the spot's own counts corrected the prediction. The
      layer holds smoothed values there too, no counts; `tl.evaluate` leaves these spots out
    - `uns[key_added]`: model, genes, expression scale, these slots, and per section the image and mpp used and whether
      it was in training ("train", "held out", "beside training" of the same image, "unknown"); with `measured` the
      names of these spots

    Raises
    ------
    InputError, ImageError, MissingSlotError
        For input that cannot be used; the message names the slot and the remedy, and `data` is unchanged.
    ValueError, KeyError, TypeError, FileNotFoundError
        For other arguments that cannot, and a slot that holds something else; `data` is unchanged.
    CheckpointError
        For a `checkpoint_dir` that is another prediction's, in use or damaged; `data` is unchanged.
    OSError
        If the disk of `checkpoint_dir` or of the temporary folder is full; `data` is unchanged.
    KeyboardInterrupt
        At Ctrl-C; the message says how to go on, and `data` is unchanged.
    """
    require_model(model)
    flag("copy", copy)
    for name, switch in {"average_flips": average_flips, "progress": progress}.items():
        flag_or_none(name, switch)
    spots_per_batch(batch_size)
    whole_or_none("chunk_spots", chunk_spots)
    folder = path_or_none("checkpoint_dir", checkpoint_dir)
    how: dict[str, Any] = {"average_flips": average_flips, "chunk_spots": chunk_spots}
    taken(model, {**how, "checkpoint": folder})  # refuses the others
    sections = open_sections(
        data,
        library_key=library_key,
        library_id=library_id,
        spatial_key=spatial_key,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        layer=layer,
        mpp=mpp,
        looks=told(model, "reads_image"),
    )
    seen = [("layers", layer), ("obs", library_key), ("obsm", spatial_key), ("obsm", told(model, "embeddings"))]
    seen += [("obs", measured)] if isinstance(measured, str) else []
    reads = [(slot, name) for slot, name in seen if name is not None]
    genes, table = list(model.genes), table_of(data, table_key)
    require_writable(data, genes, key=key_added, table_key=table_key, overwrite=overwrite, reads=reads)
    known = np.isin(genes, table.var_names)
    given = None
    if measured is not None:  # before the work: counts that cannot serve are refused
        there = [gene for gene, is_known in zip(genes, known, strict=True) if is_known]
        spots = measured_spots(table, measured, sections)
        given = [counts_at(section, at, there, model.scale) for section, at in zip(sections, spots, strict=True)]
    use_once(sections)
    predictions = []
    try:
        with (
            _checkpoints(folder, sections, model, how) as checkpoints,
            of_spots(sections, "predict", progress) as bar,
        ):
            for section, checkpoint in zip(sections, checkpoints, strict=True):
                predictions.append(
                    predict_section(
                        model,
                        section,
                        device=device,
                        batch_size=batch_size,
                        advance=bar.update,
                        checkpoint=checkpoint if "checkpoint" in model.takes else None,
                        **how,
                    )
                )
    except KeyboardInterrupt:
        remedy = "goes on" if checkpoint_dir is not None else "begins anew; with checkpoint_dir= it would go on"
        raise KeyboardInterrupt(f"prediction was interrupted: the same call {remedy}") from None
    record = prediction_record(model, sections, layer=layer, library_key=library_key)
    roles = record["sections"]["role"]
    warn_of_neighbours([section.name for section, role in zip(sections, roles, strict=True) if role == BESIDE])
    confidence = confidence_of(model, [expression for expression, _ in predictions])
    if given is not None:
        warn_of_a_subset(table.n_vars, record, int(known.sum()))
        predictions, uncertainties = _corrected(model, sections, given, predictions, known)
        names = [table.obs_names[section.obs_rows[at.spots]] for section, at in zip(sections, given, strict=True)]
        record["measured"] = np.concatenate(names).astype(object)
        confidence |= {"uncertainties": uncertainties, "measured": [at.spots for at in given]}
    target = copy_of(data) if copy else data
    write_prediction(
        target,
        sections,
        predictions,
        genes=genes,
        key=key_added,
        params=record,
        **confidence,
        table_key=table_key,
        overwrite=overwrite,
        reads=reads,
    )
    return target if copy else None


def _corrected(
    model: Model,
    sections: Sequence[Section],
    given: Sequence[Measured],
    predictions: Sequence[tuple[np.ndarray, np.ndarray | None]],
    known: np.ndarray,
) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], list[np.ndarray]]:
    """Correct each section's prediction of the genes that are `known` there; return predictions and uncertainties."""
    better, uncertainties = [], []
    for section, measured, (expression, latent) in zip(sections, given, predictions, strict=True):
        found = corrected(expression[:, known], section.xy, measured, model.scale)
        whole = expression.copy()  # a model may hold its prediction
        whole[:, known] = found.expression
        better.append((whole, latent))
        uncertainties.append(found.uncertainty)
    return better, uncertainties


def _checkpoints(
    folder: Path | None, sections: Sequence[Section], model: Model, how: Mapping[str, Any]
) -> AbstractContextManager[list[Checkpoint]]:
    """Open what is known of each section so far; nothing, where there is no folder for it."""
    if folder is None:
        return nullcontext([Checkpoint() for _ in sections])
    embeddings = [] if (slot := told(model, "embeddings")) is None else [slot]
    identity = {
        "version of hggep_sc": __version__,
        "model": model.id,
        "mpp of the model": told(model, "mpp"),
        "reduction of the model": told(model, "reduction"),
        "config": told(model, "config").to_dict() | settings.of_features(),
        "data": [sight_hash(section, embeddings, looks=told(model, "reads_image")) for section in sections],
        **how,
    }
    return open_checkpoints(folder, identity, len(sections))
