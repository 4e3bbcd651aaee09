import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from .. import _keys
from ..errors import ImageWarning, InputError, ScaleWarning
from ..image.quality import COARSE_UM, thresholds, tile_quality
from ..image.tissue import LOOK_PX, TissueMask, find_tissue, is_gray
from ..runtime.messages import warn
from ..runtime.validators import choice, flag, number, text_or_none
from ..section import copy_of, image_of, is_spatialdata, require_key
from ..storage.paths import expanded

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ..methods.registry import Model

SPACING_UM = 100.0  # where nothing tells a better one; as in Visium

Grid = Literal["square", "hexagonal"]


def tile(
    data: "str | Path | SpatialData | Any",
    *,
    spacing_um: float | None = None,
    model: "Model | None" = None,
    grid: Grid = "square",
    min_tissue: float = 0.5,
    tissue: "TissueMask | np.ndarray | None" = None,
    quality: bool | Mapping[str, float] = False,
    mpp: float | None = None,
    library_id: str | None = None,
    image_key: str | None = None,
    key_added: str = "tiles",
    copy: bool = False,
) -> "AnnData | SpatialData | None":
    """Lay spots over the tissue of an image that was not sequenced, for `hggep_sc.tl.predict`.

    The image is looked at reduced to at most 2,048 px, and not kept.

    Parameters
    ----------
    data
        Image file, array, or a SpatialData with an image.
    spacing_um
        Centre to centre, um; None for that of the spots that `model` was trained on, where there is one that knows it,
        else 100.
    model
        The model that is to predict: its genes become `var`, without which `tl.predict` has nowhere to write.
    grid
        "square", or "hexagonal" as in Visium.
    min_tissue
        Share of the square around a spot, `spacing_um` wide, that must be tissue.
    tissue
        Where there is tissue: a `TissueMask`, or a 2-D array over the whole image, at any resolution, of booleans or of
        0 and one other value, which is tissue. None for `hggep_sc.pp.tissue_mask`.
    quality
        Say of each tile whether it is out of focus ("blur"), inked ("pen") or folded ("fold"); every tile is read for
        it at 1 um per px. A dict of thresholds replaces the usual ones, `{"blur": 0.03, "pen": 0.1, "fold": 0.2}`: the
        sharpness below which, and the shares of a tile above which it is called so.
    mpp
        um per px of the image's finest level; None for what the image says of itself.
    library_id
        Name of the section in `uns["spatial"]`; None for the file's name without its suffix, or "slide". Not for
        SpatialData.
    image_key
        SpatialData: the image, where there are several.
    key_added
        SpatialData: name of the shapes; the table that annotates them is `f"table_{key_added}"`.
    copy
        SpatialData: return a new object, which shares the image, instead of writing into `data`.

    Returns
    -------
    Of a file or an array an AnnData, one row per spot; of a SpatialData None, or the new object with `copy=True`,
    into which shapes (squares, or circles of a hexagonal grid) and a table were written. The AnnData, and without
    its `obsm` and image also the table, holds

    - `X`: no counts, CSR of zeros, float32, n_obs x the model's genes
    - `obs["array_row"]`, `["array_col"]`: position on the grid, columns in steps of two if hexagonal; `obs_names`
      are "<column>x<row>"
    - with `quality`, `obs["hggep_quality"]`: categorical, "good", "blur", "pen" or "fold"
    - `obsm["spatial"]`: n_obs x 2, centres, column and row in px of the image's finest level
    - `uns["spatial"][library_id]`: scale factors, `images["hires"]` of at most 2,048 px, and of a file its path
      in `metadata["source_image_path"]`, of an array the array in `images["full"]`

    Raises
    ------
    InputError, ImageError
        If the scale is unknown, the spacing is below a px, there is no tissue, `tissue` is not of this image, or the
        image cannot be read.
    ValueError
        If an argument is out of range, or the SpatialData has `key_added` already.
    TypeError
        If `data` is no image, `model` no model, or `tissue` no mask.
    MissingSlotError, FileNotFoundError
        If the image is not there.
    """
    from anndata import AnnData

    if isinstance(data, AnnData):
        raise TypeError(
            "an AnnData has spots already: give the image itself, such as the path in "
            "uns['spatial'][library_id]['metadata']['source_image_path']"
        )
    in_place = is_spatialdata(data)
    if copy and not in_place:
        raise ValueError("`copy` is for SpatialData objects: of an image a new object is returned anyway")
    if library_id is not None and in_place:
        raise ValueError("`library_id` is for images: name the shapes of a SpatialData by `key_added=`")
    if spacing_um is None:
        spacing_um = _spacing_of(model)
    choice("grid", grid, get_args(Grid))
    spacing_um, min_tissue = (
        number("spacing_um", spacing_um, above=0),
        number("min_tissue", min_tissue, above=0, most=1),
    )
    if "/" in (text_or_none("library_id", library_id) or ""):
        raise ValueError(f"library_id={library_id!r}: files cannot hold a name with '/' in it: choose another")
    flag("copy", copy)
    limits = thresholds(quality)
    require_key(key_added)
    if in_place:
        _require_free(data, key_added)
    if model is not None:
        _check_model(model)

    source = image_of(data, image_key=image_key, mpp=mpp)
    with source.opener() as image:
        told = source.scale_with(image)
        scale = _scale(None if told is None else told.mpp, spacing_um, source.name)
        spacing = spacing_um / scale
        factors = {"microns_per_pixel": scale, "spot_diameter_fullres": spacing}
        if grid == "square":
            factors["bin_size_um"] = float(spacing_um)  # drawn as squares, without gaps
        look = cache(lambda: image.thumbnail(LOOK_PX))  # not read for a SpatialData with a mask
        if tissue is None:
            tissue = find_tissue(look(), image.shape, mpp=scale)
            if not tissue.mask.any() and is_gray(look()):
                raise InputError(
                    f"no tissue on {source.name}: it is gray, and tissue is told by H&E's colours. Give the image in "
                    "colours, or say where tissue is by `tissue=` (a 2-D array of booleans over the whole image)"
                )
        elif isinstance(tissue, TissueMask):
            tissue.require_covers(image.shape)
        else:
            tissue = TissueMask.over(tissue, image.shape, scale)
        # what the caller said of the scale stays the caller's word when the spots are predicted
        metadata = {"mpp_source": told.by} if told is not None else {}
        library = {} if in_place else _library(data, look(), image.shape, factors, metadata)
        places, xy = _on_tissue(tissue, image.shape, spacing, grid, min_tissue)
        if not len(xy):
            raise InputError(
                f"no tissue on {source.name}: none of the squares of {spacing_um:g} um has {min_tissue:.0%} of it. "
                "Look at `pp.tissue_mask`; give your own mask by `tissue=`, or a smaller `min_tissue=`"
            )
        spots = _table(places, model)
        if limits is not None:
            if scale > COARSE_UM:
                warn(
                    f"{source.name} has {scale:.3g} um per px: whether it is in focus is told at 1 um per px, and not "
                    f"looked for; obs[{_keys.QUALITY!r}] tells of pen and folds alone",
                    ImageWarning,
                )
            spots.obs[_keys.QUALITY] = tile_quality(image, look(), tissue, xy, spacing, scale, limits)
    if in_place:
        target = copy_of(data) if copy else data
        _add_to_spatialdata(
            target, source.transformations, key_added, spots, xy, factors, metadata, squares=grid == "square"
        )
        return target if copy else None
    spots.obsm[_keys.SPATIAL] = xy
    name = library_id or (Path(data).stem if isinstance(data, str | Path) else "slide")
    spots.uns[_keys.SPATIAL] = {name: library}
    return spots


def _require_free(sdata: "SpatialData", key: str) -> None:
    for name, kind in ((key, "shapes"), (_table_key(key), "tables")):
        if name in sdata:
            raise ValueError(
                f"the SpatialData has an element {name!r} already: give another `key_added=`, or remove it first "
                f"(`del sdata.{kind}[{name!r}]`)"
            )


def _table_key(key: str) -> str:
    return f"table_{key}"


def _check_model(model: Any) -> None:
    from ..methods.registry import require_model
    from ..prediction.record import told

    require_model(model)
    if told(model, "mpp") is None:
        warn(
            "the physical scale that the model was trained at is unknown: it will look at as many px of this image as "
            "of those, whatever um they are",
            ScaleWarning,
        )


def _spacing_of(model: "Model | None") -> float:
    """Um from spot to spot of the sections that a model was trained on; of several spacings the middle."""
    known = getattr(model, "spacing_um", None)  # what is no model is refused later
    return SPACING_UM if known is None else math.sqrt(known[0] * known[1])


def _scale(mpp: float | None, spacing_um: float, name: str) -> float:
    """Check that a spacing in um means something on the image, and return um per px."""
    if mpp is None:
        raise InputError(
            f"spacing_um={spacing_um:g} needs the scale of {name}, which does not say it: give `mpp=` (um per px)"
        )
    if spacing_um < mpp:
        raise InputError(
            f"spacing_um={spacing_um:g} is less than a px of {name}, which is {mpp:.3g} um wide. Is the scale right? "
            "`mpp=` corrects it"
        )
    return mpp


def _on_tissue(
    tissue: TissueMask, shape: tuple[int, int], spacing: float, grid: Grid, min_tissue: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions on the grid (n, 2) (column, row) and centres (n, 2) (x, y) of spots with enough tissue."""
    found = []
    for places, xy in _rows(shape, spacing, grid):  # a row at a time: candidates may be many more than spots
        kept = tissue.share(xy, spacing) >= min_tissue
        found.append((places[kept], xy[kept]))
    places, xy = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return places, xy


def _rows(shape: tuple[int, int], spacing: float, grid: Grid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a grid that is centred on the image: positions and centres, (n, 2) each."""
    height, width = shape
    hexagonal = grid == "hexagonal"
    step = spacing * math.sqrt(3) / 2 if hexagonal else spacing
    n_rows, n_columns = max(1, round(height / step)), max(1, round(width / spacing))
    top, left = (height - (n_rows - 1) * step) / 2, (width - (n_columns - 1) * spacing) / 2
    for row in range(n_rows):
        odd = hexagonal * (row % 2)
        columns = np.arange(n_columns - odd)  # half a step to the right, between those of the row above
        x = left + (columns + odd / 2) * spacing
        places = np.column_stack([columns * (1 + hexagonal) + odd, np.full(len(columns), row)])
        yield places, np.column_stack([x, np.full(len(columns), top + row * step)])


def _table(places: np.ndarray, model: "Model | None") -> "AnnData":
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    columns, rows = places.T
    names = pd.Index([f"{column}x{row}" for column, row in places.tolist()])
    genes = [] if model is None else list(model.genes)
    return AnnData(
        csr_matrix((len(places), len(genes)), dtype=np.float32),
        obs=pd.DataFrame({_keys.ARRAY_ROW: rows, _keys.ARRAY_COL: columns}, index=names),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )


def _library(
    data: Any, thumbnail: np.ndarray, shape: tuple[int, int], factors: dict[str, float], metadata: dict[str, str]
) -> dict[str, Any]:
    """`uns["spatial"][library_id]` in Space Ranger's layout."""
    factors = factors | {"tissue_hires_scalef": thumbnail.shape[1] / shape[1]}
    if isinstance(data, str | Path):
        metadata = metadata | {"source_image_path": str(Path(expanded(data)).absolute())}
        return {"images": {"hires": thumbnail}, "scalefactors": factors, "metadata": metadata}
    return {
        "images": {"full": data, "hires": thumbnail},
        "scalefactors": factors | {"tissue_full_scalef": 1.0},
        "metadata": metadata,
    }


def _add_to_spatialdata(
    sdata: "SpatialData",
    transformations: Mapping[str, Any],
    key: str,
    spots: "AnnData",
    xy: np.ndarray,
    factors: dict[str, float],
    metadata: dict[str, str],
    *,
    squares: bool,
) -> None:
    """Write spots as shapes in the image's px, and the table that annotates them."""
    import shapely
    from spatialdata.models import ShapesModel, TableModel

    half = factors["spot_diameter_fullres"] / 2
    outlines = shapely.box(*(xy - half).T, *(xy + half).T) if squares else shapely.points(xy)
    kind, coordinates, offsets = shapely.to_ragged_array(outlines)
    shapes = ShapesModel.parse(
        coordinates,
        geometry=int(kind),
        offsets=offsets,
        radius=half,  # of circles
        index=spots.obs_names,
        transformations=dict(transformations),
    )
    spots.obs["region"] = pd.Categorical([key] * spots.n_obs)
    spots.obs["instance_id"] = spots.obs_names.to_numpy()
    spots.uns[_keys.SPATIAL] = {key: {"scalefactors": factors, "metadata": metadata}}
    table = TableModel.parse(spots, region=key, region_key="region", instance_key="instance_id")
    sdata.shapes[key] = shapes
    sdata.tables[_table_key(key)] = table
