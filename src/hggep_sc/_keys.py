"""Every slot name that the package reads or writes, once."""

# read: scanpy's and Space Ranger's conventions
SPATIAL = "spatial"  # obsm: spot centres in full-resolution pixels (x, y); uns: libraries with images
IN_TISSUE = "in_tissue"  # obs: 1 where a spot lies under tissue
ARRAY_COL, ARRAY_ROW = "array_col", "array_row"  # obs: position on the array grid (x, y)
PATIENTS = ("patient", "donor_id")  # obs: whose tissue a section is; the second is CELLxGENE's name

# written: every name derives from the key that the caller chose with `key_added`
KEY = "hggep"


# figures per gene that `tl.evaluate` writes
METRICS = (
    *("pcc", "pcc_pval", "pcc_padj", "pcc_neg_log10_p", "spearman", "rmse", "ssim", "ceiling"),
    *("pcc_beyond_depth", "ceiling_beyond_depth", "moran_observed", "moran_predicted"),
)


def predicted(key: str) -> str:
    """`var`: whether the model predicts the gene."""
    return f"{key}_predicted"


def reliability(key: str) -> str:
    """`var`: how well held-out training sections predict each gene."""
    return f"{key}_reliability"


def uncertainty(key: str) -> str:
    """`obs`: the error to expect of each spot's prediction."""
    return f"{key}_uncertainty"


def measured(key: str) -> str:
    """`obs`: whether the spot's own counts corrected the prediction."""
    return f"{key}_measured"


def latent(key: str) -> str:
    """`obsm`: the network's latent representation of each spot."""
    return f"X_{key}"


def metric(key: str, name: str) -> str:
    """`var`: one figure of merit per gene, such as `hggep_pcc`."""
    return f"{key}_{name}"


QUALITY = "hggep_quality"  # obs: what `tile` says of each tile's pixels
DOMAIN = "hggep_domain"  # obs: domains; uns: how they were found
UNDETERMINED = "undetermined"  # the label of spots that the expert left open
SLIDE = "hggep_slide"  # uns: by what `tl.predict_slides` knows a finished slide
