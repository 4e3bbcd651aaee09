"""Models on the Hugging Face hub: `hf://owner/name` becomes a folder on this machine."""

import logging
import re
from pathlib import Path

from ..errors import DownloadError, MissingPackageError

logger = logging.getLogger(__name__)

PREFIX = "hf://"
PARTS = ["model.json", "*.safetensors"]  # of a repository, which may hold other files


def local_folder(path: str | Path) -> str | Path:
    """Return the folder of a model: `hf://owner/name@revision` is downloaded once, anything else is as it is.

    Parameters
    ----------
    path
        A folder; or `hf://owner/name`, with a branch, tag or commit after an "@". Without one it is what the main
        branch holds today, and the commit is logged, to be named from then on.

    Raises
    ------
    ValueError
        If it names no repository.
    MissingPackageError
        If huggingface_hub is not installed.
    DownloadError
        If it cannot be had.
    """
    if not str(path).startswith((PREFIX, PREFIX.replace("//", "/"))):  # a Path has one slash less
        return path
    named = re.fullmatch(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(path))
    if named is None:
        raise ValueError(f"{str(path)!r} must be hf://owner/name or hf://owner/name@revision")
    repository, revision = named.groups()
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'{path} is on the Hugging Face hub, and {error.name} is not installed: pip install "hggep-sc[hub]"'
        ) from None
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=PARTS))
    except (OSError, ValueError) as error:  # the hub's errors of network, server, consent and missing files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{PREFIX}{repository} cannot be had: {reason}. `hf download {repository}` gets it on a machine that "
            "reaches the hub; then load the folder"
        ) from error
    if revision != folder.name:
        pinned = f"{PREFIX}{repository}@{folder.name}"
        logger.info("%s%s: load %s for the same model ever after", PREFIX, repository, pinned)
    return folder


def real_file(file: Path) -> Path:
    """Return a file, or what it stands for in a snapshot of the hub's, whose files are links to its `blobs`."""
    if not file.is_symlink():
        return file
    found, blobs = file.resolve(), file.parent.parent.parent / "blobs"
    return found if found.parent == blobs.resolve() else file
