"""Colours, line styles and names that the plots share."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb

# Okabe and Ito's eight, made for any colour vision; then colours each as far as can be from those before it and from
# white and grey. In CIELAB no two are closer than 26, and than 14 seen without red or green cones (the eight: 17).
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"),
    *("#0000FF", "#001E96", "#00FF87", "#785A2D", "#E100FF", "#69005A", "#FF1E5A", "#003C1E"),
    *("#B4F0B4", "#A5004B", "#D200B4", "#00F0FF", "#7800C3", "#D2B45A", "#3C3C87", "#2D6978"),
)
LINES = ("--", "-.", ":", (0, (5, 1, 1, 1)))  # beside the colours, for print
MARKERS = ("D", "^", "s", "v", "P", "X", "<", ">")
GREY = "0.8"  # without a value

NAMES = {
    "pcc": "PCC",
    "pcc_pval": "p of the PCC",
    "pcc_padj": "adjusted p of the PCC",
    "pcc_neg_log10_p": r"$-\log_{10}$ p of the PCC",
    "spearman": "Spearman correlation",
    "rmse": "RMSE",
    "ssim": "SSIM",
    "ceiling": "noise ceiling",
    "pcc_beyond_depth": "PCC beyond depth",
    "ceiling_beyond_depth": "noise ceiling beyond depth",
}
NOTES = {"rmse": "natural log units, lower is better"}


def colour(i: int) -> str:
    """Colour of the i-th of several things; from the 25th on they repeat."""
    return COLOURS[i % len(COLOURS)]


def line_on(fill: str) -> str:
    """Colour of lines within a filled shape: black, or white where black has a contrast below 3 (WCAG 2)."""
    rgb = np.array(to_rgb(fill))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "white" if (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05 < 3 else "black"


def ink() -> str:
    """Colour of lines and marks on the background: the text's, which any style has be seen."""
    return str(mpl.rcParams["text.color"])


def name_of(metric: str) -> str:
    """Return what an axis calls a metric."""
    return NAMES.get(metric, metric)


def note_of(metric: str) -> str:
    """Return what to know when reading a metric, in brackets; empty where there is nothing."""
    return f"({NOTES[metric]})" if metric in NOTES else ""
