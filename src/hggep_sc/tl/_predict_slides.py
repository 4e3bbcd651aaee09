import hashlib
import json
import logging
import pickle
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import nn

from .. import _keys
from .._settings import settings
from .._version import __version__
from ..errors import FailedWarning, HggepWarning, OtherCheckpointError
from ..features.patches import spots_per_batch
from ..image import is_ome_zarr
from ..methods.registry import Model, require_model
from ..pp import tile
from ..prediction.record import told
from ..runtime.device import require_device_name
from ..runtime.executor import outcomes
from ..runtime.messages import listed, warn
from ..runtime.progress import bar
from ..runtime.validators import by_name, executor_or_none, flag, flag_or_none, path_of, values_by_name, whole_or_none
from ..section import copy_of, is_spatialdata, open_sections, read_data, require_key, table_of
from ..section.fingerprint import content_hash
from ..storage.checkpoint import remove_checkpoints
from ..storage.files import require_plain_h5ad, write_h5ad
from ..storage.paths import expanded, require_file, require_there, why_absent
from ..storage.replace import replacing
from ._predict import predict

if TYPE_CHECKING:
    from spatialdata import SpatialData

    Data: TypeAlias = AnnData | SpatialData

logger = logging.getLogger(__name__)

IMAGES = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".qptiff", ".png", ".jpg", ".jpeg", ".jp2", ".webp")


def predict_slides(
    slides: "Mapping[str, Data | str | Path]",
    model: Model,
    path: str | Path,
    *,
    executor: Executor | None = None,
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
    device: str = "auto",
    batch_size: int | None = None,
    average_flips: bool | None = None,
    chunk_spots: int | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict many slides, each written to a file as it ends; a rerun does what is not done yet.

    What is known of a slide under way is in a folder beside its file, `<file>.unfinished`, written at least every 512
    spots: after an interruption, a kill too, or a full disk a rerun goes on from there, to the same result. The folder
    is removed when the slide is finished. Of two calls at work on one slide at once, the second says so of that slide.

    A finished slide is known by the model, the settings, the version of the package and the slide: a file by its size
    and time of change, an object by its spots, counts, scale and the look of its image. Where one of them has changed,
    the slide is predicted again.

    Parameters
    ----------
    slides
        By name (str, or a whole number), each an AnnData, a SpatialData, the path of one (`.h5ad`, `.zarr`), or that of
        an image (TIFF, SVS, OME-Zarr, PNG, JPEG), which is read where the slide is predicted. Objects are not changed.
        Over the tissue of an image spots are laid as `hggep_sc.pp.tile(image, model=model, mpp=mpp)` lays them; for
        other spacings, grids and masks give what that returned.
    model
        What `hggep_sc.tl.fit` or `load` of the model's class gave.
    path
        Folder for the results: `<name>.h5ad`, for a SpatialData `<name>.zarr`.
    executor
        Where slides are predicted: any `concurrent.futures.Executor`, as in `hggep_sc.tl.cross_validate`. None: one
        after another, here.
    image_key, mpp
        As in `hggep_sc.tl.fit`; a dict gives them by the slide's name.
    key_added, library_key, library_id, spatial_key, shapes_key, table_key, coordinate_system, layer, device, batch_size
        As in `hggep_sc.tl.predict`, for every slide.
    average_flips, chunk_spots
        As in `hggep_sc.tl.predict`.
    progress
        Show a progress bar over slides, and without an executor one over the spots of each; None for
        `hggep_sc.settings.progress`.
    overwrite
        As in `hggep_sc.tl.predict`, of what a slide holds under `key_added`. A file in `path` that this function did
        not write is never replaced.

    Returns
    -------
    A row per slide: `slide`, `file`, `spots` that were predicted, `seconds` that it took when it was, `error` ("" for
    none). A slide that fails is warned of, leaves the others alone, and has no file unless it had one before.

    Raises
    ------
    TypeError, ValueError, KeyError
        If a slide is of another kind, its name is none for a file, its result would replace it, or a dict names a slide
        that is not there.
    KeyboardInterrupt
        At Ctrl-C; the message says that the same call goes on.
    """
    require_model(model)
    slides, executor, folder = by_name("slides", slides), executor_or_none("executor", executor), path_of("path", path)
    by_slide = {"image_key": values_by_name("image_key", image_key), "mpp": values_by_name("mpp", mpp)}
    for keyword, value in by_slide.items():
        if isinstance(value, Mapping) and (unknown := [name for name in value if name not in slides]):
            raise KeyError(f"`{keyword}` names {listed(unknown)}, but the slides are {listed(slides)}")
    require_key(key_added)
    flag("overwrite", overwrite)
    for name, switch in {"average_flips": average_flips, "progress": progress}.items():
        flag_or_none(name, switch)
    require_device_name(device)
    spots_per_batch(batch_size)
    whole_or_none("chunk_spots", chunk_spots)
    folder = folder.resolve()  # a worker may run elsewhere
    given = {name: _located(data) if isinstance(data, str | Path) else data for name, data in slides.items()}
    files = {name: _file(folder, name, data) for name, data in given.items()}
    common = {
        "key_added": key_added,
        "library_key": library_key,
        "library_id": library_id,
        "spatial_key": spatial_key,
        "shapes_key": shapes_key,
        "table_key": table_key,
        "coordinate_system": coordinate_system,
        "layer": layer,
        "average_flips": average_flips,
        "chunk_spots": chunk_spots,
    }
    show = settings.progress if progress is None else progress
    # on which a result does not depend
    machine = {
        "device": device,
        "batch_size": batch_size,
        "progress": show and executor is None,
        "overwrite": overwrite,
    }
    rows: dict[str, dict[str, Any]] = {}
    todo = []
    sent = model if executor is None else _packed(model)
    for name, data in given.items():
        own = {keyword: value.get(name) if isinstance(value, Mapping) else value for keyword, value in by_slide.items()}
        options = {**common, **own}
        try:
            earlier = _read_record(files[name])
            task = _identity(data, model, options)
        except HggepWarning:  # which the user's filters make an error
            raise
        except Exception as error:  # noqa: BLE001 - one slide's failure is reported by name, the others go on
            rows[name] = _failed(name, error)
            continue
        if earlier is not None and earlier["task"] == task:
            remove_checkpoints(_checkpoint(files[name]))  # that a kill between writing and tidying left
            rows[name] = {"spots": int(earlier["spots"]), "seconds": float(earlier["seconds"]), "error": ""}
            continue
        if earlier is not None:
            logger.warning(
                "slide %r is predicted again: %s is of another model, other settings or another slide",
                name,
                files[name],
            )
        todo.append(_Slide(name, data, files[name], task, sent, {**options, **machine}, asdict(settings)))

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with bar(total=len(given), initial=len(rows), what="slides", unit="slide", show=show) as over:
            for slide, outcome in outcomes(_predict_slide, todo, executor):
                try:
                    spots, seconds = outcome()
                    rows[slide.name] = {"spots": spots, "seconds": seconds, "error": ""}
                except HggepWarning:
                    raise
                except Exception as error:  # noqa: BLE001 - as above
                    rows[slide.name] = _failed(slide.name, error)
                over.update()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("prediction was interrupted: the same call goes on") from None
    table = [{"slide": name, "file": str(files[name]), **rows[name]} for name in given]
    return pd.DataFrame(table, columns=["slide", "file", "spots", "seconds", "error"])


def _located(path: str | Path) -> Path:
    """Return a path as another process finds it; where there is nothing, as it was given."""
    path = expanded(path)
    return Path(path) if why_absent(path) else Path(path).resolve()


@dataclass(frozen=True, eq=False)
class _Slide:
    """One slide: all that another process needs; `task` is a hash of what the result depends on."""

    name: str
    data: "Data | Path"
    file: Path
    task: str
    model: Model | bytes
    options: dict[str, Any]
    package_settings: dict[str, Any]


def _predict_slide(slide: _Slide) -> tuple[int, float]:
    """Predict a slide and write it; return the number of spots that were predicted, and seconds."""
    settings.take(slide.package_settings)
    earlier = _read_record(slide.file)
    if earlier is not None and earlier["task"] == slide.task:  # another call was first
        return int(earlier["spots"]), float(earlier["seconds"])
    started = time.perf_counter()
    model: Model = pickle.loads(slide.model) if isinstance(slide.model, bytes) else slide.model
    data = _read(slide.data, model, slide.options["mpp"]) if isinstance(slide.data, Path) else copy_of(slide.data)
    unfinished = _checkpoint(slide.file)
    key, table = slide.options["key_added"], table_of(data, slide.options["table_key"])
    if _keys.SLIDE in table.uns and not _is_record(table.uns[_keys.SLIDE]):
        raise ValueError(
            f"uns[{_keys.SLIDE!r}] is where predict_slides notes what it did, and holds something else: rename it"
        )
    try:
        predict(data, model, checkpoint_dir=unfinished, **slide.options)
    except OtherCheckpointError as error:  # by another model, with other settings, or of another image
        logger.warning("slide %r is begun anew: %s", slide.name, error)
        remove_checkpoints(unfinished)
        predict(data, model, checkpoint_dir=unfinished, **slide.options)
    known = np.flatnonzero(table.var[_keys.predicted(key)])[0]
    spots, seconds = int(np.isfinite(table.layers[key][:, known]).sum()), time.perf_counter() - started
    table.uns[_keys.SLIDE] = {"task": slide.task, "spots": spots, "seconds": seconds}
    with replacing(slide.file) as part:
        if isinstance(data, AnnData):
            write_h5ad(data, part)
        else:
            data.write(part)
    remove_checkpoints(unfinished)
    return spots, seconds


def _checkpoint(file: Path) -> Path:
    """Folder for what is known of a slide until its file is there."""
    return file.with_name(f"{file.name}.unfinished")


def _packed(model: Model) -> bytes:
    """Pickle a model once for all slides; the worker need not have the device that it is on."""
    for part in (getattr(model, name, None) for name in ("network", "trunk", "encoder")):
        if isinstance(part, nn.Module):
            part.cpu()
    return pickle.dumps(model)


def _file(folder: Path, name: str, data: "Data | Path") -> Path:
    """Return the file of a slide's result, refusing what can be told before the work."""
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|\0'):
        raise ValueError(f"slides: {name!r} is to be the name of a file, without '/' and the like: rename it")
    if isinstance(data, Path):
        if data.suffix not in (".h5ad", ".zarr") and not _is_image(data):
            raise ValueError(
                f"slides[{name!r}]: {data} must be an .h5ad file (AnnData), a .zarr store (SpatialData) or an image "
                f"({', '.join(IMAGES)}, OME-Zarr)"
            )
        whole = data.suffix == ".zarr" and not _is_image(data)
    elif isinstance(data, AnnData) or is_spatialdata(data):
        whole = not isinstance(data, AnnData)
    else:
        raise TypeError(f"slides[{name!r}] must be an AnnData, a SpatialData or a path, not {type(data).__name__}")
    file = folder / f"{name}{'.zarr' if whole else '.h5ad'}"
    source = data if isinstance(data, Path) else getattr(data, "path", None) or getattr(data, "filename", None)
    if source is not None and file.resolve() == Path(source).resolve():
        raise ValueError(f"slides[{name!r}]: the result would replace the slide {file}: choose another folder as path=")
    return file


def _identity(data: "Data | Path", model: Model, options: Mapping[str, Any]) -> str:
    """Hash of everything that a slide's result depends on."""
    if isinstance(data, Path):
        require_there(data, "slide")
        if not data.is_dir():
            require_file(data, "slide")
        parts = sorted(data.rglob("*")) if data.is_dir() else [data]
        stats = [(str(part.relative_to(data)), part.stat()) for part in parts if part.is_file()]
        content: Any = [(part, stat.st_size, stat.st_mtime_ns) for part, stat in stats]
    else:
        names = ("library_key", "library_id", "spatial_key", "image_key", "shapes_key", "table_key", "mpp", "layer")
        looks = told(model, "reads_image")
        opened = open_sections(
            data,
            coordinate_system=options["coordinate_system"],
            looks=looks,
            check=False,
            **{name: options[name] for name in names},
        )
        slots = [slot] if (slot := told(model, "embeddings")) else []
        content = [(section.name, content_hash(section.portable(slots), looks=looks)) for section in opened]
    described = {
        "hggep_sc": __version__,
        "model": model.id,
        "mpp": told(model, "mpp"),
        "reduction": told(model, "reduction"),
        "config": told(model, "config").to_dict() | settings.of_features(),
        "options": dict(options),
        "slide": content,
    }
    return hashlib.sha256(json.dumps(described, default=float).encode()).hexdigest()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES or (path.suffix == ".zarr" and is_ome_zarr(path))


def _read(path: Path, model: Model, mpp: float | None) -> "Data":
    return tile(path, model=model, mpp=mpp) if _is_image(path) else read_data(path)


def _read_record(file: Path) -> dict[str, Any] | None:
    """Return by what a finished slide is known; None where there is no file.

    Raises
    ------
    FileExistsError
        If there is a file or folder that `predict_slides` did not write, or that is damaged.
    """
    import h5py
    import zarr
    from anndata.io import read_elem

    if not file.exists():
        return None
    slot = f"uns/{_keys.SLIDE}"
    try:
        if file.suffix == ".zarr":
            tables = [table for _, table in zarr.open_group(file / "tables", mode="r").groups()]
            record = next(read_elem(table[slot]) for table in tables if slot in table)
        else:
            require_plain_h5ad(file)
            with h5py.File(file) as store:
                record = read_elem(store[slot])
        if not _is_record(record):
            raise ValueError(f"{slot} is no record")
        return record
    except Exception as error:  # whatever a file of another kind makes the libraries raise
        raise FileExistsError(
            f"{file} is there, and no whole result of predict_slides: remove it, or choose another folder as path="
        ) from error


def _is_record(found: Any) -> bool:
    return isinstance(found, Mapping) and isinstance(found.get("task"), str) and {"spots", "seconds"} <= set(found)


def _failed(name: str, error: Exception) -> dict[str, Any]:
    """Warn of a slide that failed, and return its row."""
    warn(f"slide {name!r} failed: {type(error).__name__}: {error}", FailedWarning)
    return {"spots": 0, "seconds": np.nan, "error": f"{type(error).__name__}: {error}"}
