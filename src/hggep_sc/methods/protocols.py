"""What a method is, and what a model that it fits; a class may be both, as `HGGEP` and the baselines are."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from ..section.expression import ExpressionScale


@runtime_checkable
class Model(Protocol):
    """What predicts the expression of `genes`, on `scale`, at the spots of a section.

    A model may have more, which then is read: `config`, `mpp`, `reduction`, `spacing_um`, `seed`, `genes_by`,
    `fingerprint` (which tells training sections from others), `embeddings`, `reads_image`, `confidence`, `history`.
    """

    @property
    def method(self) -> str:
        """Name of the method that fitted it."""

    @property
    def takes(self) -> frozenset[str]:
        """Keywords of `predict` beside device: batch_size, average_flips, chunk_spots, advance, checkpoint."""

    @property
    def genes(self) -> Sequence[str]:
        """Names of the predicted genes, in order."""

    @property
    def scale(self) -> "ExpressionScale":
        """The expression scale of the predictions."""

    @property
    def id(self) -> str:
        """A hash of what was learnt: models that predict alike have the same."""

    @property
    def predict(self) -> "Callable[..., tuple[np.ndarray, np.ndarray | None]]":
        """`predict(section, *, device)`: (n_spots, n_genes) log expression and a latent (n_spots, d), or None."""

    @property
    def save(self) -> Callable[..., None]:
        """`save(path, *, overwrite)`: writes what the method's `load` reads."""


@runtime_checkable
class Method(Protocol):
    """What can be fitted to sections: an object, or a class whose `fit` and `load` are class methods.

    It is pickled for other processes; by that pickle, its settings, `tl.cross_validate` knows its results again.
    """

    @property
    def method(self) -> str:
        """Its name, as in `hggep_sc.tl.fit(method=...)`."""

    @property
    def takes(self) -> frozenset[str]:
        """Arguments of `hggep_sc.tl.fit` that `fit` takes by keyword; others are refused where they are set."""

    @property
    def fit(self) -> Callable[..., Model]:
        """`fit(sections, **what_it_takes)`: looks at nothing but these sections."""

    @property
    def load(self) -> Callable[..., Model]:
        """`load(path)`: the model that `save` wrote."""
