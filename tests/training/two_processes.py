"""What `test_devices.py` has two processes do: fit, save, and note what each of them came to.

Arguments: a folder with sections (h5ad), the settings (JSON of the keywords of `tl.fit`), a folder for the results.
"""

import json
import os
import sys
from pathlib import Path

import anndata as ad
import torch

import hggep_sc as hggep
from hggep_sc.training.plan import TrainingPlan


def gradients_of_first_step(found):
    """Note the gradients of the first step of the first fit in `found`."""

    def note(self, optimizer):
        if not found:
            found.update({n: p.grad.clone() for n, p in self.named_parameters() if p.requires_grad})

    return note


if __name__ == "__main__":
    data, settings, results = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    sections = {file.stem: ad.read_h5ad(file) for file in sorted(data.glob("*.h5ad"))}
    gradients = {}
    TrainingPlan.on_before_optimizer_step = gradients_of_first_step(gradients)
    model = hggep.tl.fit(sections, weights=None, device="cpu", devices=2, progress=False, **settings)
    model.save(results / "model")
    TrainingPlan.on_before_optimizer_step = lambda self, optimizer: None
    torch.save(
        {
            "id": model.id,
            "linear": None if model.linear is None else model.linear.tensors(),
            "history": model.history.to_dict("records"),
            "gradients": gradients,
            "weights": model.network.state_dict(),
        },
        results / f"rank{os.environ['LOCAL_RANK']}.pt",
    )
