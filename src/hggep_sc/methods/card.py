"""The card of a model: `README.md` in its folder, from its own facts."""

from typing import TYPE_CHECKING

import numpy as np

from .._version import __version__
from ..encoders.side_by_side import Known
from ..features.encoders import ObsmEncoder
from ..features.patches import spacing_words
from ..nn import ModuleEncoder
from ..prediction.record import told
from ..runtime.messages import listed

if TYPE_CHECKING:
    from ..features.encoders import Eye
    from .protocols import Model

BEST = 10  # genes named as the most reliable


def model_card(model: "Model", encoder: "Eye | None") -> str:
    """Describe a model for whoever finds its folder, in Markdown with the hub's front matter.

    Parameters
    ----------
    model
        A model of the package.
    encoder
        What sees the spots; None for one that is the network's own.
    """
    fingerprint, spacing, mpp = (told(model, name) for name in ("fingerprint", "spacing_um", "mpp"))
    facts = {
        "method": f"`{model.method}`",
        "id": f"`{model.id}`",
        "predicts": f"{len(model.genes)} genes"
        + (f", chosen by {by!r}" if (by := told(model, "genes_by")) not in (None, "names") else ""),
        "expression scale": str(model.scale),
        "trained on": f"{len(fingerprint.sections)} sections: {listed(fingerprint.sections, 20)}"
        if fingerprint.sections
        else "not known",
        "spots apart": "not known" if spacing is None else spacing_words(spacing),
        "scale of its images": "not known" if mpp is None else f"{mpp:.3g} um per px",
        "sees through": _sight(encoder) if told(model, "reads_image") or encoder else "nothing: it looks at no image",
        "seed": str(told(model, "seed")),
        "written by": f"hggep_sc {__version__}",
    }
    lines = [
        "---",
        "library_name: hggep-sc",
        "tags: [spatial-transcriptomics, histology, gene-expression, anndata]",
        "---",
        "",
        f"# Spatial gene expression from H&E: {model.method}, {len(model.genes)} genes",
        "",
        "```python",
        "import hggep_sc as hggep",
        "",
        'model = hggep.methods.load("this_folder")',
        "hggep.tl.predict(adata, model)  # into layers",
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "## How far to trust it",
        "",
        *_reliability(model),
        "",
        "Predictions are estimates from an image, for research; they are not for diagnosis. They are of the tissue, "
        "staining and scanner that it was trained on: `tl.predict` warns of slides that look otherwise.",
        "",
    ]
    return "\n".join(lines)


def _sight(encoder: "Eye | None") -> str:
    if encoder is None:
        return "its own network"
    if isinstance(encoder, ObsmEncoder):
        return f'embeddings in `obsm["{encoder.slot}"]`, which every slide has to bring'
    if isinstance(encoder, Known):
        info = encoder.info
        use = "" if info.commercial else ", not for commercial use"
        named = f"{info.title or info.name} (`{info.name}`"
        return f"{named}; licence of its weights: {info.licence}{use}), not in this folder"
    if isinstance(encoder, ModuleEncoder):
        return f"a module of its author's, {type(encoder.module).__name__}, which `load` wants again (`encoder=`)"
    return "ShuffleNetV2 x0.5 (`shufflenet`), in this folder"


def _reliability(model: "Model") -> list[str]:
    if (confidence := told(model, "confidence")) is None:
        return ["Nothing was measured in its fit; `hggep_sc.tl.cross_validate` tells for sections like yours."]
    pcc = np.asarray(confidence.reliability)
    best = np.argsort(-np.nan_to_num(pcc, nan=-np.inf), kind="stable")[:BEST]
    named = ", ".join(f"{model.genes[i]} {pcc[i]:.2f}" for i in best)
    return [
        "Training sections were left out in turn and predicted by models that had not seen them. Over their spots the "
        f"Pearson correlation of a gene's prediction with its measurement was {np.nanmean(pcc):.2f} in the mean over "
        f"genes ({np.nanpercentile(pcc, 10):.2f} to {np.nanpercentile(pcc, 90):.2f} for the middle 80 %). Best: "
        f"{named}. Each gene's is in `var` after `tl.predict`.",
    ]
