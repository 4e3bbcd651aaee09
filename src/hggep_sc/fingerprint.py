"""What sections are known by when seen again: a model's training spots, and the content of a whole section."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch

from . import _keys
from .section import Section

logger = logging.getLogger(__name__)

SHARE = 0.5  # of a section's spots that have to be known
THUMBNAIL = 256  # px, of the image by which a section is known again


@dataclass
class Fingerprint:
    """Hashes of the training spots' counts and coordinates; neither can be read back from them.

    Attributes
    ----------
    sections
        Names of the training sections.
    counts, coordinates
        Sorted uint64 hashes, one per spot.
    library_genes
        Genes that a training spot's library was counted over, the fewest of all sections.
    """

    sections: list[str]
    counts: np.ndarray
    coordinates: np.ndarray
    library_genes: int = 0

    @classmethod
    def of(cls, sections: Sequence[Section], genes: Sequence[str]) -> Self:
        """Return the fingerprint of training sections."""
        return cls(
            [s.name for s in sections],
            np.unique(np.concatenate([_hash_counts(s, genes) for s in sections])),
            np.unique(np.concatenate([_hash_coordinates(s) for s in sections])),
            min(len(s.var_names) for s in sections),
        )

    @classmethod
    def empty(cls) -> Self:
        """Return the fingerprint of a model whose training sections are not known."""
        nothing = np.empty(0, dtype=np.uint64)
        return cls([], nothing, nothing)

    def role(self, section: Section, genes: Sequence[str]) -> Literal["train", "held out", "unknown"]:
        """Tell whether a section, or a part of one, was trained on, whatever its name is now."""
        if not self.sections:
            return "unknown"
        seen = [np.isin(_hash_coordinates(section), self.coordinates)]
        if section.has_counts and section.var_names.is_unique and set(genes) <= set(section.var_names):
            try:
                seen.append(np.isin(_hash_counts(section, genes), self.counts))
            except ValueError:  # no raw counts, which prediction does without: the coordinates tell
                logger.info("section %r: no raw counts; its coordinates alone are compared", section.name)
        return "train" if any(len(s) and s.mean() >= SHARE for s in seen) else "held out"

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the hashes as they are saved."""
        return {name: torch.from_numpy(getattr(self, name).view(np.int64)) for name in ("counts", "coordinates")}

    @classmethod
    def from_tensors(
        cls, sections: Sequence[str], tensors: Mapping[str, torch.Tensor], *, library_genes: int = 0
    ) -> Self:
        """Rebuild what `tensors` gave."""
        counts, coordinates = (tensors[name].numpy().view(np.uint64) for name in ("counts", "coordinates"))
        return cls(list(sections), counts, coordinates, library_genes)


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


def content_hash(section: Section) -> str:
    """Hash what a portable section is: counts, where there are any, places, scale and the look of its image."""
    digest = hashlib.sha256("\n".join(map(str, section.var_names)).encode())
    if section.table.X is not None:
        counts = section.table.X.sorted_indices()
        for array in (counts.indptr, counts.indices, counts.data.astype(np.float64)):
            digest.update(array.tobytes())
    _update_by_sight(digest, section, sorted(section.table.obsm), looks=True)
    return digest.hexdigest()


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
