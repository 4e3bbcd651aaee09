"""What the package's own models share of being kept: their folder, and their id."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from torch import Tensor, nn

from ..section.fingerprint import Fingerprint
from ..storage.models import load_model, save_model, stored_scale
from .card import model_card

if TYPE_CHECKING:
    from .protocols import Model


class FittedModel(ABC):
    """A model that is saved to a folder, and loaded; see `HGGEP` for the attributes."""

    method: ClassVar[str]
    config: Any
    genes: list[str]
    genes_by: str | None
    mpp: float | None
    reduction: float
    spacing_um: tuple[float, float] | None
    seed: int | None
    fingerprint: Fingerprint

    @property
    @abstractmethod
    def id(self) -> str:
        """Name of this fitted model: a hash of its genes and of what was learnt."""

    @abstractmethod
    def _kept(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
        """Return what the folder holds beside what all models' do: entries of the manifest, and tensors by file."""

    @property
    @abstractmethod
    def _sees_through(self) -> Any:
        """What sees the spots, for the card."""

    @classmethod
    @abstractmethod
    def _rebuild(
        cls,
        content: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        *,
        given: nn.Module | str | Path | None,
    ) -> Self:
        """Make the model of what `save` wrote, and of an encoder that the user gives."""

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a folder: what was learnt as safetensors, everything else as JSON.

        An encoder of your own (`tl.fit(encoder=module)`) is not written, nor one whose weights come from elsewhere:
        `load` wants it again, or its weights. The manifest is replaced last and in one step, so that an interruption
        leaves the earlier model whole.

        Parameters
        ----------
        path
            Folder to write; made if it does not exist.
        overwrite
            Replace the model in the folder.

        Raises
        ------
        FileExistsError
            If something is there already, unless `overwrite`; always, if it is not a model.
        """
        entries, tensors = self._kept()
        save_model(
            path,
            method=self.method,
            model_id=self.id,
            content={
                "config": self.config.to_dict(),
                "mpp": self.mpp,
                "reduction": self.reduction,
                "spacing_um": self.spacing_um,
                "seed": self.seed,
                "genes": self.genes,
                "genes_by": self.genes_by,
                "training_sections": self.fingerprint.sections,
                "library_genes": self.fingerprint.library_genes,
                **entries,
            },
            tensors={"training": self.fingerprint.tensors(), **tensors},
            card=model_card(cast("Model", self), self._sees_through),
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path, *, encoder: nn.Module | str | Path | None = None) -> Self:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path
            The folder, or "hf://owner/name@revision", as in `HGGEP.load`.
        encoder
            As in `HGGEP.load`.

        Returns
        -------
        The model, as it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ModelError
            If the folder is not a model of this class, is damaged, or was written by another version.
        ValueError
            If the model wants an encoder that was not given, is another, or computes something else.
        """
        return load_model(path, method=cls.method, rebuild=partial(cls._rebuild, given=encoder))


def known_of_fit(content: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Return what a folder tells of a model's training, by the names that every model takes."""
    training = tensors["training"]
    return {
        "mpp": content["mpp"],
        "seed": content["seed"],
        "genes_by": content.get("genes_by"),
        "fingerprint": Fingerprint.from_tensors(
            content["training_sections"], training, library_genes=content["library_genes"]
        ),
        **stored_scale(content),
    }
