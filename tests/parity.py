"""Stored vectors of published networks: how they are read, how networks are filled, and how far results are off."""

import importlib.util
from contextlib import contextmanager

import numpy as np
import torch

from hggep_sc.nn import Batch


def stored(shared, name):
    """Arrays of a file of vectors by name, as tensors."""
    with np.load(shared / "reference" / name) as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}


def formula(shared):
    """The module that gives weights by their entry's name."""
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(shared, build):
    """A network, by what builds it, with the formula's weights, in evaluation mode."""
    with torch.device("meta"):  # millions of weights need not be drawn
        network = build()
    fill = formula(shared)
    state = {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else fill.values(name, tuple(value.shape))
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def published_entries(shared, name):
    """Shape of each entry of a published state dict, as text."""
    lines = (shared / "reference" / "rivals" / f"{name}_state_dict.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def entries(network):
    """The same of a network."""
    return {name: "x".join(map(str, value.shape)) for name, value in network.state_dict().items()}


def off(found, expected):
    """Largest error over the largest expected value; the store holds the first spots of some arrays."""
    found, expected = found.detach().double(), expected.double()
    return float((found[: len(expected)] - expected).abs().max() / expected.abs().max())


def centred(values):
    """Of each gene, what differs between spots."""
    return values.double() - values.double().mean(0)


def as_images(patches):
    """The stored patches are (channel, x, y); networks take (field, channel, row, column)."""
    return patches.transpose(-1, -2).unsqueeze(1)


@contextmanager
def watched(modules):
    """What modules give while the context lasts, under the keys that they have in a dict."""
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def batch_of(spots, expression, size_factors=None):
    """All 32 spots of the vectors as one batch that learns from each."""
    return Batch(
        patches=as_images(spots["patches"]),
        features=None,
        positions=spots["loc"],
        expression=expression,
        counts=spots["counts"].float(),
        size_factors=torch.ones(len(expression)) if size_factors is None else size_factors,
        observed=torch.arange(len(expression)),
    )


def adata_of(spots):
    """The 32 spots of the vectors on an image of their patches, a row of squares."""
    from anndata import AnnData

    patches = spots["patches"].numpy()
    strip = np.concatenate(list(patches.transpose(0, 3, 2, 1)), axis=1)
    adata = AnnData(shape=(len(patches), spots["counts"].shape[1]))
    adata.obsm["spatial"] = np.array([[56.9 + 112 * i, 56.6] for i in range(len(patches))])  # to be rounded down
    adata.obs["array_col"], adata.obs["array_row"] = spots["loc"].numpy().T
    scales = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 100}
    adata.uns["spatial"] = {"c2": {"images": {"hires": strip}, "scalefactors": scales}}
    return adata
