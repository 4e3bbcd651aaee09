"""Every slot name that the package reads or writes, once."""

# read: scanpy's and Space Ranger's conventions
SPATIAL = "spatial"  # obsm: spot centres in full-resolution pixels (x, y); uns: libraries with images
IN_TISSUE = "in_tissue"  # obs: 1 where a spot lies under tissue
ARRAY_COL, ARRAY_ROW = "array_col", "array_row"  # obs: position on the array grid (x, y)

# written: every name derives from the key that the caller chose with `key_added`
KEY = "hggep"


METRICS = ("pcc", "rmse")  # figures per gene that `tl.evaluate` writes


def predicted(key: str) -> str:
    """`var`: whether the model predicts the gene."""
    return f"{key}_predicted"


def latent(key: str) -> str:
    """`obsm`: the network's latent representation of each spot."""
    return f"X_{key}"


def metric(key: str, name: str) -> str:
    """`var`: one figure of merit per gene, such as `hggep_pcc`."""
    return f"{key}_{name}"
