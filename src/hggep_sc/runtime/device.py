"""The device to compute on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from .._settings import settings


def require_device_name(device: str) -> None:
    """Refuse what is no device, whether this machine has it or not.

    Raises
    ------
    TypeError, ValueError
        If it is no name, or an unknown one.
    """
    known = "use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
    if not isinstance(device, str | torch.device):  # of a number torch makes a GPU
        raise TypeError(f"device={device!r} is not a device's name; {known}")
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not known; {known}") from error
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={device!r} is not supported; {known}")


def resolve_device(device: str) -> torch.device:
    """Return the device to compute on; "auto" takes `settings.device`, and a GPU if that says "auto" too.

    Raises
    ------
    ValueError
        For an unknown device, or one that this machine does not have.
    """
    require_device_name(device)
    if device == "auto":
        device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    require_device_name(device)
    resolved = torch.device(device)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices "
            f"(torch {torch.__version__}); use device='cpu'"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps' is not there: this machine has no Apple GPU; use device='cpu'")
    return resolved


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return the context in which networks run: convolutions and matrix products in bfloat16, where a GPU has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def encoder_precision(device: torch.device) -> torch.autocast:
    """Return the context in which encoders run, see `settings.encoder_precision`."""
    wanted = settings.encoder_precision
    mixed = has_bfloat16(device) if wanted == "auto" else wanted == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


def is_first_process() -> bool:
    """Whether this process is to write what all processes of a fit hold; True where there is one."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Compute with as many threads as torch gives to a new one: rounding depends on their number.

    Other libraries change it for the thread that they are called in, as Numba does.
    """
    torch.get_num_threads()  # as above
    with ThreadPoolExecutor(1) as other:
        number = other.submit(torch.get_num_threads).result()
    with threadpool_limits(number, user_api="openmp"):
        yield
