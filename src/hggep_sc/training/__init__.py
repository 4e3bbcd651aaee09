"""From sections to a trained network."""

from ..runtime.imports import naming_what_is_broken

with naming_what_is_broken("lightning"):  # before any module here does
    import lightning.pytorch  # noqa: F401
