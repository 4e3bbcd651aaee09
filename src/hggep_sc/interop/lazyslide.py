"""LazySlide: its runner runs models of this package, and its tiles and features are predicted on.

Needs the extra: `pip install "hggep-sc[lazyslide]"`. See `docs/lazyslide.md`.
"""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from ..errors import InputError, MissingPackageError, MissingSlotError
from ..methods.hggep import HGGEP
from ..methods.registry import Model, require_model
from ..runtime.messages import listed
from ..runtime.validators import text, text_or_none, whole_or_none
from ..section import require_plausible

if TYPE_CHECKING:
    from wsidata import WSIData

try:
    from lazyslide_models.base import FeaturePredictionModel
except ModuleNotFoundError as error:
    raise MissingPackageError(
        f"hggep_sc.interop.lazyslide needs LazySlide, and {error.name} is not installed: "
        'pip install "hggep-sc[lazyslide]"'
    ) from None

__all__ = ["FeatureModel", "feature_model", "gene_table"]


class FeatureModel(FeaturePredictionModel):
    """A model of this package as `lazyslide.tl.feature_prediction` takes it; made by `feature_model`.

    Attributes
    ----------
    features_model_name
        The table of features that the runner looks for, its own name or what comes before `"_tiles"`.
    """

    needs_coords = True
    whole_slide = True  # a tile is seen with what surrounds it: the model has chunks of its own

    def __init__(self, fitted: HGGEP, mpp: float, features_model_name: str, chunk_spots: int | None) -> None:
        self.features_model_name = features_model_name
        self.model = fitted.network
        self._fitted, self._mpp, self._chunk_spots = fitted, mpp, chunk_spots
        self._device = "auto"

    @property
    def name(self) -> str:
        """What the table of predictions is called before `"_tiles"`."""
        return self._fitted.method

    def to(self, device: Any) -> Self:
        """Predict on this device from now on."""
        self._device = str(device)
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Leave the network as it is: a compiled one is no gain for one pass over a slide."""

    def predict(self, features: np.ndarray, coords: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Predict the tiles of a slide.

        Parameters
        ----------
        features
            (n_tiles, d) embeddings.
        coords
            (n_tiles, 2) top-left corners of the tiles, px of the slide's finest level. As all tiles are of one size,
            they lie to each other as their centres do.

        Returns
        -------
        Gene to (n_tiles,) float32 log expression.

        Raises
        ------
        ValueError
            If there are no coordinates, or as `HGGEP.predict_features`.
        """
        if coords is None:
            raise ValueError("coords are needed: the model sees a tile with its neighbours")
        if hasattr(features, "toarray"):
            features = features.toarray()
        expression, _ = self._fitted.predict_features(
            features, coords, mpp=self._mpp, device=self._device, chunk_spots=self._chunk_spots
        )
        return dict(zip(self._fitted.genes, expression.T, strict=True))


def feature_model(
    model: HGGEP, *, mpp: float, features_model_name: str | None = None, chunk_spots: int | None = None
) -> FeatureModel:
    """Make a model of this package one that LazySlide runs on its tiles' features.

    `lazyslide.tl.feature_prediction(wsi, feature_model(model, mpp=wsi.properties.mpp))` writes the table
    `"hggep_tiles"`: a row per tile, a column per gene, log expression on the model's scale (`model.scale`).

    Parameters
    ----------
    model
        HGGEP that was fitted on embeddings (`tl.fit(encoder="uni2_tiles")`, or an `obsm` slot) of the same encoder, of
        tiles of the same size in um.
    mpp
        Um per px of the slide's finest level: `wsi.properties.mpp`.
    features_model_name
        The table of features, whole or without `"_tiles"`; None for the name that the model was fitted with.
    chunk_spots
        Tiles that attention and hypergraph see at once, as in `tl.predict`; memory does not grow with the slide.

    Raises
    ------
    TypeError
        If `model` is no HGGEP.
    ValueError
        If it looks at images itself, or `mpp` is not that of a slide.
    """
    if not isinstance(model, HGGEP):
        raise TypeError(
            f"model must be an HGGEP that was fitted on embeddings, not {type(model).__name__}: other methods predict "
            "a WSIData by tl.predict, on a table of hggep_sc.interop.lazyslide.gene_table"
        )
    if model.embeddings is None:
        raise ValueError(
            "the model looks at the slide itself, and takes no features: predict the WSIData by tl.predict, on a table "
            "of hggep_sc.interop.lazyslide.gene_table"
        )
    if (checked := require_plausible(mpp)) is None:
        raise ValueError("mpp=None: give um per px of the slide's finest level, such as wsi.properties.mpp")
    name = text_or_none("features_model_name", features_model_name) or model.embeddings
    return FeatureModel(model, checked, name, whole_or_none("chunk_spots", chunk_spots))


def gene_table(wsi: "WSIData", model: Model, *, tile_key: str = "tiles", key_added: str = "hggep_genes") -> None:
    """Add a table of the model's genes for the tiles of a slide, which `tl.predict(wsi, model, table_key=)` fills.

    Parameters
    ----------
    wsi
        Slide with tiles; any SpatialData with shapes will do.
    model
        The model that is to predict.
    tile_key
        Name of the tiles' shapes.
    key_added
        Name of the table.

    Returns
    -------
    None. Written is `tables[key_added]`: an AnnData of a row per tile and a column per gene, without counts, that
    annotates the tiles (`obs["library_id"]`, `obs["tile_id"]`).

    Raises
    ------
    MissingSlotError
        If there are no such shapes.
    InputError
        If the slide has an element `key_added` already.
    TypeError
        If `model` is no model.
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata.models import TableModel

    require_model(model)
    text("tile_key", tile_key), text("key_added", key_added)
    if tile_key not in wsi.shapes:
        raise MissingSlotError(
            f"`tile_key`: the slide has no shapes {tile_key!r}; shapes: {listed(wsi.shapes)}. Lay tiles by "
            "`lazyslide.pp.tile_tissues`"
        )
    if key_added in wsi:
        raise InputError(
            f"the slide has an element {key_added!r} already: give another `key_added=`, or remove it first "
            f"(`del wsi.tables[{key_added!r}]`)"
        )
    tiles = wsi.shapes[tile_key].index
    of_tile = {"library_id": pd.Categorical([tile_key] * len(tiles)), "tile_id": tiles.to_numpy()}
    spots = AnnData(
        csr_matrix((len(tiles), len(model.genes)), dtype=np.float32),
        obs=pd.DataFrame(of_tile, index=tiles.astype(str)),
        var=pd.DataFrame(index=list(model.genes)),
    )
    wsi.tables[key_added] = TableModel.parse(spots, region=tile_key, region_key="library_id", instance_key="tile_id")
