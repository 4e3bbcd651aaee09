"""What tests share: settings of a network that trains in a second or two, encoders, sections and their comparison."""

from contextlib import contextmanager

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn

from hggep_sc.errors import HggepWarning

HEIGHT, WIDTH = 200, 240
GENES = ["GNAS", "FASN", "CD74", "ACTB", "MUC1"]
TINY = {
    "patch_size": 32,
    "fields_um": (60.0, 120.0),
    "fields_px": (112.0, 224.0),
    "width": 32,
    "vit_heads": 2,
    "n_components": 4,
    "count_weight": 0.05,  # heads for the counts, which the default goes without
    "epochs": 3,
    "ensemble": 1,
}
_SMALL_RIVAL = {"patch_size": 16, "fields_um": (60.0,), "fields_px": (60.0,), "vit_depth": 1, "vit_heads": 2}
TINY_RIVALS = {  # that see sections as a whole
    "histogene": {**_SMALL_RIVAL, "width": 16, "head_width": 8, "hidden": 16, "epochs": 1},
    "hist2st": {
        **_SMALL_RIVAL,
        "tile": 4,
        "channels": 8,
        "kernel": 3,
        "mixer_depth": 1,
        "graph_depth": 2,
        "head_width": 8,
    }
    | {"views": 2, "epochs": 1},
    "thitogene": {**_SMALL_RIVAL, "patch_size": 48, "channels": (4, 4, 8, 8, 16), "n_capsules": 4, "capsule_width": 4}
    | {"head_width": 8, "hidden": 16, "gat_heads": 2, "gat_width": 8, "gat_out": 8, "gene_width": 16, "epochs": 1},
}
_SMALL_SPOTS = {
    "patch_size": 32,
    "fields_um": None,
    "fields_px": (32.0,),
    "depths": (1, 1),
    "stem": 4,
    "batch_spots": 16,
}
TINY_SPOT_RIVALS = {  # that see each spot by itself
    "stnet": {**_SMALL_SPOTS, "batch_spots": 16, "growth": 4, "epochs": 2, "inner_folds": 2},
    "bleep": {**_SMALL_SPOTS, "batch_spots": 16, "width": 8, "epochs": 1, "harmony": False},
    "deeppt": {**_SMALL_SPOTS, "hidden": 8, "epochs": 1, "autoencoder_epochs": 1},
}
LEARNING = {"gem": True, "cbam": True, "backbone_learning_rate": 1e-4}  # an encoder that learns from the pixels
WAIT = 1800  # seconds after which a test that hangs gives up
CPU = {"weights": None, "device": "cpu", "progress": False}


@contextmanager
def bfloat16(device="cpu"):
    """Mixed precision as on a GPU; LSTMs without oneDNN, which does not compute them in bfloat16 on every CPU."""
    forward = nn.LSTM.forward

    def without_onednn(self, *given):
        with torch.backends.mkldnn.flags(enabled=False):
            return forward(self, *given)

    with pytest.MonkeyPatch.context() as patch, torch.autocast(device, torch.bfloat16):
        patch.setattr(nn.LSTM, "forward", without_onednn)
        yield


class Warned:
    """What the package has warned of, in order: of what `warnings.catch_warnings(record=True)` gives, its own."""

    def __init__(self, caught):
        self._caught = caught

    @property
    def recorded(self):
        return [found for found in self._caught if issubclass(found.category, HggepWarning)]

    @property
    def messages(self):
        return [str(found.message) for found in self.recorded]

    @property
    def text(self):
        return "\n".join(self.messages)

    def clear(self):
        self._caught.clear()


class Corner(nn.Module):
    """What turning and mirroring change: four pixels of a corner."""

    def forward(self, pixels):
        return pixels[:, :, :2, 3:5].flatten(1)


class MeanColour(nn.Module):
    """The smallest encoder: mean red, green and blue of a patch, through a fixed matrix where there is one."""

    def __init__(self, mixing=None):
        super().__init__()
        if mixing is not None:
            self.register_buffer("mixing", torch.as_tensor(mixing, dtype=torch.float32))

    def forward(self, pixels):
        colour = pixels.mean((2, 3))
        return colour @ self.mixing if hasattr(self, "mixing") else colour


def alive(encoder):
    """An encoder with the batch statistics of noise, so that features through random weights differ, in eval mode."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    noise = torch.randint(0, 256, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        encoder(noise)
    return encoder.eval()


def as_spatialdata(adata, *, scale_factors=None):
    """The same section as SpatialData: the table shuffled, the image in a scaled and moved coordinate system."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine

    from hggep_sc.image import SectionImage

    name = next(iter(adata.uns["spatial"]))
    entry = adata.uns["spatial"][name]
    with SectionImage.from_file(entry["metadata"]["source_image_path"]) as opened:
        pixels = opened.thumbnail(max(opened.shape)).transpose(2, 0, 1)
    to_global = Affine([[0.5, 0, 30.0], [0, 0.5, -12.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    image = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=scale_factors,
        transformations={"global": to_global},
    )
    inverse = np.linalg.inv(to_global.to_affine_matrix(("x", "y"), ("x", "y")))
    # shapes live in a third of a px, and meet the image in "global"
    forward = np.linalg.inv(inverse) @ np.diag([3, 3, 1])
    circles = ShapesModel.parse(
        adata.obsm["spatial"] / 3,
        geometry=0,
        radius=np.full(adata.n_obs, entry["scalefactors"]["spot_diameter_fullres"] / 6),
        index=adata.obs_names.to_numpy(),
        transformations={"global": Affine(forward, input_axes=("x", "y"), output_axes=("x", "y"))},
    )
    table = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    del table.uns["spatial"], table.obsm["spatial"]
    table.obs["region_name"] = "spots"
    table.obs["region_name"] = table.obs["region_name"].astype("category")
    table.obs["instance"] = table.obs_names.to_numpy()
    table = TableModel.parse(table, region="spots", region_key="region_name", instance_key="instance")
    return sd.SpatialData(images={"he": image}, shapes={"spots": circles}, tables={"table": table})


def assert_same(a, b):
    """Two AnnData hold the same in every slot."""
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for slot in ("layers", "obsm", "uns"):
        _assert_equal(dict(getattr(a, slot)), dict(getattr(b, slot)))
    _assert_equal(a.X, b.X)


def _assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(*(x.toarray() if hasattr(x, "toarray") else np.asarray(x) for x in (a, b)))


def make_adata(library: str = "A", seed: int = 0) -> ad.AnnData:
    """30 spots, 30 px apart, on an image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = np.meshgrid(30 + 30 * np.arange(6), 30 + 30 * np.arange(5))
    counts = np.random.default_rng(seed).poisson(3, size=(30, len(GENES))).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    adata.obs_names = [f"{library}{i}" for i in range(30)]
    adata.obsm["spatial"] = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    adata.uns["spatial"] = {
        library: {
            "images": {"full": np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)},
            "scalefactors": {"tissue_full_scalef": 1.0},
            "metadata": {"technology": "ST", "source_image_path": "gone.png"},
        }
    }
    return adata


def section_of(table, xy, name):
    """A Section without an image."""
    from hggep_sc.section import Section

    return Section(
        name=name,
        obs_rows=np.arange(table.n_obs),
        xy=xy,
        mpp=None,
        spot_diameter=None,
        spot_shape="circle",
        image_name="image",
        table=table,
        layer=None,
        opener=None,
    )


def slow_moran(x, xy):
    """By the definition, spot by spot, over the six nearest spots."""
    centred, total, weights = x - x.mean(), 0.0, 0.0
    for i in range(len(x)):
        distance = np.hypot(*(xy - xy[i]).T)
        distance[i] = np.inf
        for j in np.argsort(distance)[:6]:
            total += centred[i] * centred[j]
            weights += 1
    return len(x) / weights * total / (centred**2).sum()
