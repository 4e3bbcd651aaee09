"""What sections are known by when seen again: a model's training spots and images, and a section's whole content."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .. import _keys
from ..runtime.checks import is_on
from ._overlap import reach, within
from ._scale import spot_spacing
from ._section import Section

logger = logging.getLogger(__name__)

SHARE = 0.5  # of a section's spots that have to be known
THUMBNAIL = 256  # px, of the image by which a section is known again


Role = Literal["train", "beside training", "held out", "unknown"]
HELD: Final = "held out"
BESIDE: Final = "beside training"
CELLS = 4  # per spacing of the spots: how exactly the training spots' places are kept


@dataclass(frozen=True, eq=False)
class Place:
    """Where on an image spots were trained on.

    Attributes
    ----------
    image
        Height and width of the image, px, and a hash of its look: (3,) uint64.
    cell
        Side of the cells, px of the image's finest level, (1,) float64.
    cells
        Cells that hold a spot, (n, 2) int32.
    """

    image: np.ndarray
    cell: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, section: Section) -> Self | None:
        """Return the place of a training section; None without an image that can be read."""
        known = _image_of(section)
        if known is None:
            return None
        cell = max((spot_spacing(section.xy) or 0.0) / CELLS, 1.0)
        cells = np.unique(np.floor(section.xy / cell).astype(np.int32), axis=0)
        return cls(known, np.array([cell]), cells)

    def beside(self, section: Section, field: float) -> bool:
        """Whether any spot of a section is so near to one of these that they share tissue, if the image is the same."""
        distance = reach(section.xy, field) - self.cell[0] / 2  # the spot lies anywhere in its cell
        if not within(section.xy, (self.cells + 0.5) * self.cell[0], distance).any():
            return False
        known = _image_of(section, like=self.image)
        return known is not None and np.array_equal(known, self.image)


@dataclass
class Fingerprint:
    """What is kept of the training spots: hashes of counts and coordinates, and where on which image they lay.

    Counts cannot be read back from them, nor an image; coordinates can.

    Attributes
    ----------
    sections
        Names of the training sections.
    counts, coordinates
        Sorted uint64 hashes, one per spot.
    library_genes
        Genes that a training spot's library was counted over, the fewest of all sections.
    places
        Of the sections that had an image; none in models that were saved before there were any.
    """

    sections: list[str]
    counts: np.ndarray
    coordinates: np.ndarray
    library_genes: int = 0
    places: Sequence[Place] = ()

    @classmethod
    def of(cls, sections: Sequence[Section], genes: Sequence[str]) -> Self:
        """Return the fingerprint of training sections."""
        return cls(
            [s.name for s in sections],
            np.unique(np.concatenate([_hash_counts(s, genes) for s in sections])),
            np.unique(np.concatenate([_hash_coordinates(s) for s in sections])),
            min(len(s.var_names) for s in sections),
            [place for section in sections if (place := Place.of(section)) is not None],
        )

    @classmethod
    def empty(cls) -> Self:
        """Return the fingerprint of a model whose training sections are not known."""
        nothing = np.empty(0, dtype=np.uint64)
        return cls([], nothing, nothing)

    def role(self, section: Section, genes: Sequence[str], field: float = 0.0) -> Role:
        """Tell whether a section, or a part of one, was trained on, or lies beside what was, whatever its name is now.

        Parameters
        ----------
        section
            The section.
        genes
            Those of the model.
        field
            The model's largest field of view, px of the section's image: how far a spot's patch reaches.

        Returns
        -------
        "train" where at least half of the spots are known by their counts or coordinates; "beside training" where any
        lies beside a training spot of the same image; "held out" otherwise; "unknown" where nothing is known of the
        training.
        """
        if not self.sections:
            return "unknown"
        seen = [np.isin(_hash_coordinates(section), self.coordinates)]
        if section.has_counts and section.var_names.is_unique and set(genes) <= set(section.var_names):
            try:
                seen.append(np.isin(_hash_counts(section, genes), self.counts))
            except ValueError:  # no raw counts, which prediction does without: the coordinates tell
                logger.info("section %r: no raw counts; its coordinates alone are compared", section.name)
        if any(len(s) and s.mean() >= SHARE for s in seen):
            return "train"
        looked_for = is_on("training_neighbours")
        return BESIDE if looked_for and any(place.beside(section, field) for place in self.places) else HELD

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the hashes and places as they are saved."""
        tensors = {name: torch.from_numpy(getattr(self, name).view(np.int64)) for name in ("counts", "coordinates")}
        for number, place in enumerate(self.places):
            tensors[f"image.{number}"] = torch.from_numpy(place.image.view(np.int64))
            tensors[f"cell.{number}"] = torch.from_numpy(place.cell)
            tensors[f"cells.{number}"] = torch.from_numpy(place.cells)
        return tensors

    @classmethod
    def from_tensors(
        cls, sections: Sequence[str], tensors: Mapping[str, torch.Tensor], *, library_genes: int = 0
    ) -> Self:
        """Rebuild what `tensors` gave.

        Parameters
        ----------
        sections
            Names of the training sections.
        tensors
            What `tensors` gave, by name.
        library_genes
            Over how many genes the training sections' libraries were counted; 0 where it is not known.

        Returns
        -------
        The fingerprint.
        """
        counts, coordinates = (tensors[name].numpy().view(np.uint64) for name in ("counts", "coordinates"))
        numbers = range(sum(name.startswith("image.") for name in tensors))
        places = [
            Place(
                tensors[f"image.{number}"].numpy().view(np.uint64),
                tensors[f"cell.{number}"].numpy(),
                tensors[f"cells.{number}"].numpy(),
            )
            for number in numbers
        ]
        return cls(list(sections), counts, coordinates, library_genes, places)


def _hash_counts(section: Section, genes: Sequence[str]) -> np.ndarray:
    """Hash every spot's counts over the genes; spots without any are left out, they are all alike."""
    counts = section.counts(genes)
    weights = np.random.default_rng(0).integers(1, 2**63, size=len(genes), dtype=np.uint64)
    hashes = np.asarray(counts.astype(np.uint64) @ weights).ravel()  # modulo 2^64
    return hashes[np.diff(counts.indptr) > 0]


def _hash_coordinates(section: Section) -> np.ndarray:
    """Hash every spot's centre, to the nearest px; the odd offset keeps rounding away from halves."""
    cells = np.floor(section.xy + 0.137).astype(np.int64).astype(np.uint64)
    return cells[:, 0] << np.uint64(32) ^ cells[:, 1]


def content_hash(section: Section, *, looks: bool = True) -> str:
    """Hash what a portable section is: counts, where there are any, places, scale and, where it looks, the image."""
    digest = hashlib.sha256("\n".join(map(str, section.var_names)).encode())
    if section.table.X is not None:
        counts = section.table.X.sorted_indices()
        for array in (counts.indptr, counts.indices, counts.data.astype(np.float64)):
            digest.update(array.tobytes())
    _update_by_sight(digest, section, sorted(section.table.obsm), looks=looks)
    return digest.hexdigest()


_images: "WeakKeyDictionary[Section, np.ndarray]" = WeakKeyDictionary()  # each fit of a cross-validation asks anew


def _image_of(section: Section, like: np.ndarray | None = None) -> np.ndarray | None:
    """Return what an image is known by, as in `Place`; None without one that can be read, or where the size tells."""
    if section in _images or not section.has_image:
        return _images.get(section)
    try:
        with section.open_image() as image:
            if like is not None and image.shape != tuple(like[:2]):
                return None  # before its pixels are read
            digest = hashlib.sha256(image.thumbnail(THUMBNAIL).tobytes()).digest()
            _images[section] = np.array([*image.shape, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
            return _images[section]
    except (ValueError, OSError) as error:  # of a model that looks at embeddings alone
        logger.info("section %r: its image cannot be compared: %s", section.name, error)
        return None


def sight_hash(section: Section, embeddings: Sequence[str] = (), *, looks: bool = True) -> str:
    """Hash what is seen of a section: places, scale, embeddings in `obsm` and, where it looks, the image's look."""
    digest = hashlib.sha256()
    _update_by_sight(digest, section, embeddings, looks=looks)
    return digest.hexdigest()


def _update_by_sight(digest: "hashlib._Hash", section: Section, embeddings: Sequence[str], *, looks: bool) -> None:
    for array in (section.xy, *(section.embeddings(key) for key in embeddings)):
        digest.update(np.ascontiguousarray(array).tobytes())
    obs = section.table.obs.iloc[section.obs_rows]
    places = obs.reindex(columns=[_keys.ARRAY_COL, _keys.ARRAY_ROW]).to_numpy().tolist()
    if not looks:
        digest.update(repr((places, section.mpp)).encode())
        return
    with section.open_image() as image:
        digest.update(repr((places, section.mpp, image.shape)).encode())
        digest.update(image.thumbnail(THUMBNAIL).tobytes())
