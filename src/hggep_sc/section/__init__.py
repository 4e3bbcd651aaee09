"""The model's view of one section, read from AnnData or SpatialData and written back to them.

No other module knows what the two containers look like.
"""

from ._anndata import coordinates_of
from ._containers import copy_of, is_spatialdata, read_data, section_column, table_of
from ._counts import CountMatrix, layer_values, observed_counts, without_counts
from ._genes import gene_name_hint
from ._groups import grouped, groups_in
from ._measured import measured_spots
from ._one_section import require_one_section
from ._open import open_sections
from ._overlap import reach, within
from ._scale import require_plausible, spot_spacing
from ._section import Section, require_counts
from ._spots import array_places, under_tissue
from ._whole_image import image_of
from ._write import (
    predicted_sections,
    read_prediction,
    require_free,
    require_key,
    require_no_backed_view,
    require_writable,
    unmeasured,
    warn_of_replaced,
    write_prediction,
)

__all__ = [
    "CountMatrix",
    "Section",
    "array_places",
    "coordinates_of",
    "copy_of",
    "gene_name_hint",
    "grouped",
    "groups_in",
    "image_of",
    "is_spatialdata",
    "layer_values",
    "measured_spots",
    "observed_counts",
    "open_sections",
    "predicted_sections",
    "reach",
    "read_data",
    "read_prediction",
    "require_counts",
    "require_free",
    "require_key",
    "require_no_backed_view",
    "require_one_section",
    "require_plausible",
    "require_writable",
    "section_column",
    "spot_spacing",
    "table_of",
    "under_tissue",
    "unmeasured",
    "warn_of_replaced",
    "within",
    "without_counts",
    "write_prediction",
]
