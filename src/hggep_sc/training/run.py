"""How a fit is run, whatever it learns."""

from dataclasses import dataclass
from pathlib import Path

from .devices import Devices


@dataclass(frozen=True)
class Run:
    """Seed, devices, checkpoints and progress of a fit.

    Attributes
    ----------
    seed
        Of all that is random; of an ensemble, its first network's.
    devices
        The processes that share it, and this one's device.
    checkpoint_dir, checkpoint_every
        Folder of its checkpoints, None for none, and the epochs from one to the next.
    resume
        Whether an earlier fit is gone on with.
    progress
        Whether this process shows bars.
    """

    seed: int
    devices: Devices
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 1
    resume: bool = False
    progress: bool = False

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes what all of them hold."""
        return self.devices.rank == 0
