"""The devices that a network is trained on, and which of their processes this is."""

from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, get_args

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..runtime.device import has_bfloat16, resolve_device

Strategy = Literal["auto", "ddp"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Devices:
    """One process for each device; every process runs the same fit and holds its share of the chunks.

    Attributes
    ----------
    own
        The device of this process.
    per_node, num_nodes
        Devices of a machine, and machines.
    strategy
        "auto" is "ddp" where there are several devices.
    rank
        Number of this process, from 0.
    """

    own: torch.device
    per_node: int = 1
    num_nodes: int = 1
    strategy: Strategy = "auto"
    rank: int = 0

    @classmethod
    def of(cls, device: str, devices: int, strategy: Strategy, num_nodes: int) -> Self:
        """Find the devices; see `hggep_sc.tl.fit` for the parameters.

        Raises
        ------
        ValueError
            If they are not there, or were not started as many processes as there are devices.
        """
        own = resolve_device(device)
        for name, number in {"devices": devices, "num_nodes": num_nodes}.items():
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if strategy not in get_args(Strategy):
            raise ValueError(
                f"strategy={strategy!r} is not known; there are {', '.join(map(repr, get_args(Strategy)))}, which "
                "start a process for each device: run a script, not a notebook"
            )
        alone = cls(own, devices, num_nodes, strategy)
        if alone.number == 1:
            return alone
        if own.index is not None:
            raise ValueError(f"device={device!r} is one device: give its kind alone with devices={devices}")
        if own.type == "mps" or (own.type == "cuda" and devices > torch.cuda.device_count()):
            there = 1 if own.type == "mps" else torch.cuda.device_count()
            raise ValueError(f"devices={devices} are not there: this machine has {there} of type {own.type!r}")
        try:
            found = alone.trainer().strategy
            assert isinstance(found, DDPStrategy)  # what several devices come to
            assert found.cluster_environment is not None
            found.cluster_environment.validate_settings(devices, num_nodes)
        except (MisconfigurationException, ValueError) as error:
            raise ValueError(
                f"devices={devices}, num_nodes={num_nodes} do not fit how this process was started (a script, by "
                f"python, torchrun or srun, with a process for each device): {error}"
            ) from error
        return cls(found.root_device, devices, num_nodes, strategy, found.global_rank)

    @property
    def number(self) -> int:
        """Of processes in all."""
        return self.per_node * self.num_nodes

    def trainer(self, **options: Any) -> L.Trainer:
        """Make a Lightning trainer for them, which prints and logs nothing."""
        kind = self.own.type
        return L.Trainer(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=[self.own.index or 0] if kind == "cuda" and self.number == 1 else self.per_node,
            num_nodes=self.num_nodes,
            strategy=self.strategy if self.number == 1 else "ddp",
            precision="bf16-mixed" if has_bfloat16(self.own) else "32-true",
            use_distributed_sampler=False,  # our order of chunks knows the processes
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, **options},
        )

    def agreed(self, value: Value) -> Value:
        """Return the first process's value in all of them: sums on a GPU are taken in no fixed order."""
        if self.number == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]
