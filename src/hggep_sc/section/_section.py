"""Section: what the model sees of one section."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import _keys
from ..errors import InputError, MissingSlotError
from ..image import SectionImage
from ..runtime.messages import listed
from ._counts import CountMatrix
from ._features import rows_beside
from ._spots import array_places


@dataclass(eq=False)  # arrays have no single truth value
class Section:
    """One section: spots, where they lie on the H&E image, and their counts.

    Attributes
    ----------
    name
        The section's name, unique among those opened together.
    obs_rows
        (n,) rows of `table` that are this section's spots under tissue, in the table's order.
    xy
        (n, 2) spot centres in px of the image's finest level (column, row); pixel i covers [i, i + 1).
    mpp
        um per px of the image's finest level, None where unknown.
    spot_diameter
        Diameter of a circle, side of a square, in px of the image's finest level; None where unknown.
    spot_shape
        "circle", or "square" for the bins of Visium HD.
    image_name
        Slot or file that the image is read from; "" without an image.
    table
        The AnnData (or the SpatialData's table) that `obs_rows` refers to.
    layer
        Layer of `table` with the raw counts; None is `X`.
    opener
        Opens the image; None where the section was opened without one.
    group
        What it belongs to, such as a patient: sections of a group are left out together. None where it is its own.
    mpp_source
        What told it: "mpp=", "scalefactors", "file", "coordinate system", "spots", "noted", or "unknown".
    reduction
        Full-resolution px per px of the image's finest level: above 1 for a reduced copy.
    spacing
        px of the image's finest level from a spot to the nearest place for another; None where that is not known.
    region
        Shapes or labels of a SpatialData that the section is; "" in an AnnData.
    beside
        Other tables of the SpatialData that annotate the region, by name: their `X` may hold embeddings.
    """

    name: str
    obs_rows: np.ndarray
    xy: np.ndarray
    mpp: float | None
    spot_diameter: float | None
    spot_shape: Literal["circle", "square"]
    image_name: str
    table: AnnData = field(repr=False)
    layer: str | None
    opener: Callable[[], SectionImage] | None = field(repr=False)
    group: str | None = None
    mpp_source: str = "unknown"
    reduction: float = 1.0
    spacing: float | None = None
    region: str = ""
    beside: Mapping[str, AnnData] = field(default_factory=dict, repr=False)

    @property
    def mpp_fullres(self) -> float | None:
        """Return um per full-resolution px, None where unknown."""
        return None if self.mpp is None else self.mpp / self.reduction

    @property
    def spacing_um(self) -> float | None:
        """Return um from a spot to the nearest place for another; None where that is not known."""
        return None if self.mpp is None or self.spacing is None else self.mpp * self.spacing

    @property
    def has_image(self) -> bool:
        """Whether there is an image to open."""
        return self.opener is not None

    def open_image(self) -> SectionImage:
        """Open the image; the caller closes it (`with section.open_image() as image`).

        Raises
        ------
        InputError
            If the section was opened without one.
        """
        if self.opener is None:
            raise InputError(f"section {self.name!r} was opened without its image, which is needed here")
        return self.opener()

    def subset(self, spots: np.ndarray) -> "Section":
        """Return the section with some of its spots (bool mask or indices)."""
        return replace(self, obs_rows=self.obs_rows[spots], xy=self.xy[spots])

    def portable(self, obsm: Sequence[str] = ()) -> "Section":
        """Return the section with a table of its own spots, counts, places and some embeddings alone.

        It is what training, prediction and evaluation read, for another process. Without counts it has no `X`.
        """
        obs = self.table.obs.iloc[self.obs_rows]
        light = AnnData(
            self._matrix.values(self.obs_rows) if self.has_counts else None,
            obs=obs[[name for name in (_keys.ARRAY_COL, _keys.ARRAY_ROW) if name in obs]].copy(),
            var=pd.DataFrame(index=self.var_names),
            obsm={_keys.SPATIAL: self.xy, **{key: self.embeddings(key) for key in obsm}},
        )
        return replace(self, table=light, obs_rows=np.arange(light.n_obs), layer=None, beside={})

    @property
    def var_names(self) -> pd.Index:
        """Gene names of the table."""
        return self.table.var_names

    def counts(self, genes: Sequence[str]) -> sparse.csr_matrix:
        """Raw counts of some genes.

        Parameters
        ----------
        genes
            Names as in `var_names`, in the order wanted.

        Returns
        -------
        (n, len(genes)) float32 counts; columns are matched by name.

        Raises
        ------
        MissingSlotError
            If a gene is not in the table, or there are no counts.
        InputError
            If a name is there twice, or a value of these genes is no count.
        """
        return self._matrix.counts(self.obs_rows, genes)

    def library(self) -> np.ndarray:
        """(n,) float64 counts per spot over all genes of the table.

        Raises
        ------
        MissingSlotError
            If there are no counts.
        InputError
            If any value is no count.
        """
        return self._matrix.library(self.obs_rows)

    def embeddings_slot(self, key: str) -> str | None:
        """Return what messages call the embeddings of a name: a slot of `obsm`, or another table; None for none."""
        return f"obsm[{key!r}]" if key in self.table.obsm else f"tables[{key!r}].X" if key in self.beside else None

    def embeddings(self, key: str) -> np.ndarray:
        """Embeddings of the spots' patches: `obsm[key]`, or `X` of a table beside, matched by instance.

        Returns
        -------
        (n, d) float32.

        Raises
        ------
        MissingSlotError
            If there are none of that name.
        InputError
            If there is not a row of finite numbers per spot.
        """
        table, rows, slot = self.table, self.obs_rows, self.embeddings_slot(key)
        if slot is None:
            raise MissingSlotError(
                f"section {self.name!r}: no embeddings in obsm[{key!r}]; obsm holds {listed(table.obsm)}"
                + (f", and the other tables of {self.region!r} are {listed(self.beside)}" if self.beside else "")
            )
        if key in table.obsm:
            found = table.obsm[key]
            found = found.to_numpy() if isinstance(found, pd.DataFrame) else found
        else:
            found = self.beside[key].X
            rows = rows_beside(self.beside[key], slot, self.region, table, rows, self.name)
        values = found[rows]
        values = values.toarray() if sparse.issparse(values) else np.asarray(values)
        numbers = values.dtype.kind in "fiu"
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(values, dtype=np.float32) if numbers else None
        if single is None or single.ndim != 2 or not np.isfinite(single).all():
            raise InputError(
                f"section {self.name!r}: {slot} must hold a row of finite numbers for each spot, found "
                f"{values.dtype} values of shape {values.shape}"
            )
        return single

    @property
    def has_counts(self) -> bool:
        """Whether any value of `X` (or the layer) differs from zero at the section's spots."""
        return self._matrix.any(self.obs_rows)

    def array_xy(self) -> np.ndarray:
        """(n, 2) int64 positions on the array grid: `obs["array_col"]`, `obs["array_row"]`.

        Raises
        ------
        MissingSlotError
            If a column is missing.
        InputError
            If one holds something else than whole numbers.
        """
        obs = self.table.obs
        missing = [column for column in (_keys.ARRAY_COL, _keys.ARRAY_ROW) if column not in obs]
        if missing:
            raise MissingSlotError(
                f"section {self.name!r}: obs has no column {listed(missing)}; the array position of each "
                f"spot (x as {_keys.ARRAY_COL!r}, y as {_keys.ARRAY_ROW!r}) is needed here. Space Ranger's "
                "tissue_positions file and the spot files of Spatial Transcriptomics hold it"
            )
        places = array_places(self.table, self.obs_rows)
        if places is None:
            raise InputError(
                f"section {self.name!r}: obs[{_keys.ARRAY_COL!r}] and obs[{_keys.ARRAY_ROW!r}] must be "
                "whole numbers without gaps, the spots' positions on the array grid"
            )
        return places

    @property
    def _matrix(self) -> CountMatrix:
        return CountMatrix(self.table, self.layer, f"section {self.name!r}")


def require_counts(sections: Sequence[Section]) -> None:
    """Refuse sections without anything to learn from."""
    for section in sections:
        if not section.has_counts:
            raise InputError(f"section {section.name!r} has no counts to learn from: give the slot with layer=")
