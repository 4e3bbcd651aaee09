"""The command `hggep`: fit, predict and evaluate files from a shell, such as a cluster's jobs.

Every command calls the function of the same name, whose page tells more; what it warns of and how it refuses are the
same. It ends with 0, with 1 where something failed, with 2 for a command that was misspelt, and with 130 at Ctrl-C.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import settings
from .._version import __version__
from ..errors import HggepWarning

if TYPE_CHECKING:
    import pandas as pd

SECTIONS, ARGUMENTS = "sections", "fit"  # of a file for `hggep fit`

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress bars; without a terminal there are none.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hggep")
def hggep() -> None:
    """Predict spatial gene expression from H&E slides."""


@hggep.command()
@click.argument("sections", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model.")
@click.option("--overwrite", is_flag=True, help="Replace the model that is there.")
@device_option
@quiet_option
def fit(sections: Path, out: Path, overwrite: bool, device: str, quiet: bool) -> None:
    """Train a model on the sections that a YAML file names.

    The file has "sections", a path (.h5ad, .zarr) by name, seen from the file's folder, and may have "fit", arguments
    of hggep_sc.tl.fit by name:

    \b
    sections:
      P1: P1.h5ad
      P2: P2.zarr
    fit:
      genes: 500
      seed: 1
    """  # noqa: D301 - click's mark of a paragraph that is not filled
    from ..section import read_data
    from ..tl import fit as fit_sections

    with _told():
        paths, arguments = _plan(sections)
        if not overwrite and (out / "model.json").exists():
            raise FileExistsError(f"{out} holds a model already: --overwrite replaces it")
        data = {name: read_data(path) for name, path in paths.items()}
        model = fit_sections(data, device=device, progress=_shows(quiet), **arguments)
        model.save(out, overwrite=overwrite)
        click.echo(f"{model}\n{out}")


@hggep.command()
@click.argument("model")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--mpp", type=float, help="um per px of the images, where they do not tell.")
@click.option("--key", "key_added", default="hggep", show_default=True, help="Name of the prediction in the results.")
@device_option
@quiet_option
def predict(
    model: str, slides: tuple[Path, ...], out: Path, mpp: float | None, key_added: str, device: str, quiet: bool
) -> None:
    """Predict slides by MODEL, a folder or hf://owner/name@revision.

    SLIDES are .h5ad, .zarr or images (SVS, TIFF, OME-Zarr, PNG, JPEG), over whose tissue spots are laid. Each is
    written to the folder as it ends; the same command goes on where it was interrupted.
    """
    from ..methods import load
    from ..tl import predict_slides

    with _told():
        named = _by_stem(slides)
        table = predict_slides(
            named, load(model), out, mpp=mpp, key_added=key_added, device=device, progress=_shows(quiet)
        )
        _echo(table.drop(columns="error"))  # which was warned of
        if (table["error"] != "").any():
            sys.exit(1)


@hggep.command()
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--key", help="Name of the prediction; not needed where there is one.")
@click.option(
    "--null",
    type=click.Choice(["independent", "spatial"]),
    default="independent",
    show_default=True,
    help="Whether p-values take spots for independent of one another, or for alike where they are close.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a table of each, <name>.csv.")
def evaluate(predictions: tuple[Path, ...], key: str | None, null: Any, out: Path | None) -> None:
    """Compare PREDICTIONS with the counts beside them.

    PREDICTIONS are .h5ad or .zarr that hold raw counts. Means over genes are printed; p-values are in the
    tables of --out.
    """
    import pandas as pd

    from ..evaluation.section_scores import MEANS
    from ..section import read_data
    from ..tl import evaluate as evaluate_section

    with _told():
        means = {}
        for name, path in _by_stem(predictions).items():
            scores = evaluate_section(read_data(path), key=key, null=null)
            means[name] = scores[MEANS].mean()
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                scores.to_csv(out / f"{name}.csv")
        _echo(pd.DataFrame(means).T.rename_axis("section").reset_index())


@hggep.command()
@click.argument("model")
def info(model: str) -> None:
    """Say what MODEL is: a folder or hf://owner/name@revision."""
    from ..storage.models import CARD, folder_of, real_file

    with _told():
        card = real_file(folder_of(model) / CARD)
        if not card.is_file():
            from ..methods import load

            click.echo(repr(load(model)))
            return
        click.echo(card.read_text())


@contextmanager
def _told() -> Iterator[None]:
    """Write warnings and errors as one line each, and end as the command's page says."""

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        click.secho(f"{category.__name__}: {message}", fg="yellow", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages' advice
        warnings.simplefilter("always", HggepWarning)
        warnings.showwarning = show
        try:
            yield
        except KeyboardInterrupt as error:
            click.secho(str(error) or "interrupted", fg="red", err=True)
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - a shell wants the reason, not where in the code it arose
            reason = error.args[0] if isinstance(error, KeyError) and error.args else error
            click.secho(f"{type(error).__name__}: {reason}", fg="red", err=True)
            sys.exit(1)


def _plan(file: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the sections of a file for `hggep fit`, and the arguments."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML file: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get(SECTIONS), dict) or not found[SECTIONS]:
        raise ValueError(f"{file} must hold {SECTIONS!r}: the path of each section by its name")
    if unknown := sorted(map(str, set(found) - {SECTIONS, ARGUMENTS})):
        raise ValueError(f"{file}: {', '.join(map(repr, unknown))} is neither {SECTIONS!r} nor {ARGUMENTS!r}")
    paths = {str(name): file.parent / str(path) for name, path in found[SECTIONS].items()}
    return paths, dict(found.get(ARGUMENTS) or {})


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files by their names without suffix, which tell results apart."""
    named = {path.name.removesuffix("".join(path.suffixes[-1:])): path for path in paths}
    if len(named) < len(paths):
        raise ValueError("two of the files have the same name, as their results would: rename one")
    return named


def _shows(quiet: bool) -> bool:
    """Whether there are progress bars: in a file they would be thousands of lines."""
    return settings.progress and not quiet and sys.stderr.isatty()


def _echo(table: "pd.DataFrame") -> None:
    click.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
