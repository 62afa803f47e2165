"""The options that both training scripts share."""

import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from options.fields import DEVICES, DIFFAUGMENT_ALL, IMAGE_SIZES, check_range, flag_of, option, option_fields
from options.presets import Preset
from options.value_range import ValueRange, fill_value_ranges, read_value_ranges

Options = TypeVar("Options", bound="CommonOptions")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options that both training scripts share."""

    # The options that the user named on the command line. Not a flag, and not part of a run.
    explicit: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)

    SCRIPT: ClassVar[str] = ""  # the script whose options these are, as checkpoints name it
    PRESETS: ClassVar[Mapping[str, Preset]] = {}  # `toy_cats` is used if the user gives neither a preset nor data
    DATA_FLAGS: ClassVar[tuple[str, ...]] = ("data",)  # the options that name folders of images

    # fmt: off
    preset: str | None = option(
        None, "named set of options (`list` shows all); default without data: toy_cats", "Run")
    name: str | None = option(
        None, "name of the run's folder; default: script, data, augmentation, losses and a number", "Run",
        resumable=True)
    checkpoint_dir: str = option(
        "checkpoints", "folder that holds the run folders", "Run", resumable=True, metavar="FOLDER", is_path=True)
    sample_dir: str | None = option(
        None, "write the grids to FOLDER/<name>/ instead of the run folder's samples/", "Run", metavar="FOLDER",
        is_path=True)
    resume: str | None = option(
        None, "resume a run from its newest checkpoint; without a value, the run given by --name", "Run",
        resumable=True, const="", metavar="RUN_FOLDER", is_path=True)
    init_from: str | None = option(
        None, "start with the weights of another run: G and D, and the moving average of G with its average; "
        "optimizers, iteration and options are new", "Run", metavar="RUN_OR_CHECKPOINT", is_path=True,
        keeps_absolute=True)
    partial: bool = option(False, "with --init_from: take only the layers that fit", "Run", needs="init_from")

    image_size: int = option(64, "side of the square images, in pixels", "Data", choices=IMAGE_SIZES)
    data_aug: str = option(
        "basic", "basic: resize, center crop; deluxe: resize to 1.1 S, random crop, flip; paper: the same with 286/256 "
        "S, as in the CycleGAN paper; deluxe_autocontrast: RandomResizedCrop, flip, autocontrast", "Data",
        choices=("basic", "deluxe", "paper", "deluxe_autocontrast"), aliases=("--data_preprocess",))
    ext: str | None = option(
        None, "use only the files with this extension, such as png; default: every image", "Data")
    test_split: float = option(
        0.0, "share of each folder's images to hold out from training (listed in data.json); testA and testB are "
        "then ignored", "Data", at_least=0, below=1)
    value_range: str | None = option(
        None, "values that become black and white, of images with more than 8 bits per value; default: chosen from all "
        "training images; two domains may have two, LOW,HIGH:LOW,HIGH", "Data", metavar="LOW,HIGH")
    cache_gb: float = option(
        4.0, "keep the decoded images in memory up to this many GB; stream larger sets from disk", "Data",
        at_least=0, resumable=True)
    strict: bool = option(False, "fail on unreadable images instead of skipping them", "Data", resumable=True)
    num_workers: int | None = option(
        None, "threads that decode images; default and 0: one per core", "Data", at_least=0, at_most=1000,
        resumable=True)

    norm: str = option("instance", "normalization in G and D", "Networks", choices=("instance", "batch", "none"))
    spectral_norm: bool = option(False, "spectral normalization of D's convolutions", "Networks")
    init_type: str = option(
        "pytorch", "initialization of the convolutions; pytorch: its default, normal: N(0, 0.02)", "Networks",
        choices=("pytorch", "normal", "xavier", "kaiming", "orthogonal"))

    gan_mode: str = option(
        "lsgan", "adversarial loss; vanilla: cross-entropy (D's loss is the sum of both terms; the CycleGAN authors' "
        "code has half of it); relativistic: of the difference between real and fake logits (R3GAN)", "Objective",
        choices=("lsgan", "vanilla", "hinge", "relativistic"))
    lambda_features: float = option(
        0.0, "weight of feature matching: G's images get the distribution of the real ones in features of "
        "EfficientNet-Lite0, so that few iterations give better images", "Objective", at_least=0)
    r1_gamma: float = option(
        0.0, "weight of R1: penalize D's gradients on real images; 0: off", "Objective", at_least=0)
    r2_gamma: float = option(
        0.0, "weight of R2: penalize D's gradients on generated images; 0: off", "Objective", at_least=0)
    penalty_every: int = option(
        16, "compute R1 and R2 in every Nth iteration, with N times their weight", "Objective", at_least=1, metavar="N")
    use_diffaug: str = option(
        "", f"differentiable augmentation in both updates; without a value: {DIFFAUGMENT_ALL}", "Objective",
        const=DIFFAUGMENT_ALL, metavar="POLICY")

    train_iters: int | None = option(
        None, "number of iterations; overrides --num_epochs", "Training", at_least=1, resumable=True)
    batch_size: int = option(16, "images per iteration", "Training", at_least=1)
    d_optimizer: str = option(
        "adam", "optimizer of D; muon: D learns faster from few images (Jordan et al. 2024). G has Adam", "Training",
        choices=("adam", "muon"))
    lr: float = option(5e-4, "learning rate of G, and of D without --d_lr", "Training", above=0)
    d_lr: float | None = option(None, "learning rate of D; default: --lr", "Training", above=0)
    beta1: float = option(0.5, "decay rate of the mean gradient", "Training", at_least=0, below=1)
    beta2: float = option(0.999, "Adam's decay rate of the mean squared gradient", "Training", at_least=0, below=1)
    lr_policy: str = option(
        "constant", "linear: constant for the first half, then down to 0; cosine: half a cosine down to 0",
        "Training", choices=("constant", "linear", "cosine"))
    ema_decay: float = option(
        0.99, "decay of the moving average of G's weights, which draws the grids; 0: off", "Training",
        at_least=0, below=1)
    seed: int = option(
        11, "seed of weights, data order, augmentation and noise", "Training", at_least=0, at_most=2**63 - 1)

    log_step: int = option(10, "iterations between rows of losses.csv", "Output", at_least=1, resumable=True)
    sample_every: int = option(200, "iterations between grids", "Output", at_least=1, resumable=True)
    checkpoint_every: int = option(500, "iterations between checkpoints", "Output", at_least=1, resumable=True)
    keep_checkpoints: int | None = option(
        None, "keep only the newest N checkpoints, and best.pt; default: all", "Output", at_least=2, resumable=True,
        metavar="N")
    eval_every: int = option(
        0, "iterations between evaluations (metrics.csv, a curve in losses.png, best.pt); 0: none",
        "Output", at_least=0, resumable=True)
    features: str = option(
        "imagenet", "feature space of evaluations; imagenet: a small network; inception: FID, KID; pixels: 16x16 "
        "colors, no network; or a FILE as for evaluate.py", "Output", resumable=True,
        metavar="{imagenet,inception,pixels,FILE}", needs="eval_every",
        is_path=True, keeps_absolute=True)
    inception_weights: str | None = option(
        None, "downloaded Inception weights", "Output", resumable=True, metavar="FILE", needs="eval_every",
        is_path=True, keeps_absolute=True)
    tracker: str = option(
        "tensorboard", "where losses, metrics and grids also go; wandb: Weights & Biases", "Output",
        choices=("tensorboard", "wandb"), resumable=True)

    device: str = option(
        "auto", "auto: CUDA, else MPS, else CPU", "Machine", choices=DEVICES, resumable=True)
    amp: str = option(
        "auto", "mixed precision; auto: bf16 on a GPU with bf16 and on a CPU with AVX512_BF16, else off", "Machine",
        choices=("auto", "off", "bf16", "fp16"), resumable=True)
    threads: int = option(
        0, "threads of PyTorch on a CPU; 0: one per core, and fewer while other programs use the cores, which changes "
        "results by rounding", "Machine", at_least=0, at_most=1000, resumable=True, metavar="N")
    compile: bool = option(
        False, "compile the networks with torch.compile (takes a minute at start)", "Machine")
    cuda_graph: bool = option(
        True, "on CUDA, record whole steps and replay them: the same result, faster", "Machine", resumable=True)
    deterministic: bool = option(
        False, "use only deterministic kernels and all threads, so that a run can be repeated exactly, also on a GPU",
        "Machine")
    # fmt: on

    def check(self) -> None:
        """Raise ValueError, in one line with flag, value and remedy, if an option is out of range by itself."""
        for field in option_fields(type(self)):
            check_range(field, getattr(self, field.name))
        self.value_ranges()
        for name in filter(None, (part.strip() for part in self.use_diffaug.split(","))):
            if name not in DIFFAUGMENT_ALL.split(","):
                raise ValueError(f"--use_diffaug: {name!r} is unknown; choose from {DIFFAUGMENT_ALL}")
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\")):
            raise ValueError(f"--name: {self.name!r} is not a valid run name; use a name without / and \\")
        if self.name is not None and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in self.name):
            raise ValueError(f"--name: {self.name!r} contains characters that cannot be printed; leave them out")
        if any("\ud800" <= character <= "\udfff" for character in self.checkpoint_dir):  # TensorBoard fails there
            raise ValueError(f"--checkpoint_dir: {self.checkpoint_dir!r} is not valid text; use another folder")
        if self.resume == "" and self.name is None:
            raise ValueError("--resume: no run is given; use --resume RUN_FOLDER, or add --name NAME")

    def check_combinations(self) -> None:
        """Raise ValueError, as `check`, if options contradict each other. Not for a request to resume a run."""
        for field in option_fields(type(self)):
            needs = field.metadata["needs"]
            if needs is not None and field.name in self.explicit and not getattr(self, needs):
                raise ValueError(f"{flag_of(field)}: does nothing without --{needs}; add that flag")
        if self.inception_weights is not None and self.features != "inception":
            raise ValueError("--inception_weights: does nothing without --features inception; add that flag")
        if self.lambda_features and self.batch_size == 1:
            size = self.describe_flag("batch_size")
            raise ValueError(
                f"--lambda_features: compares the images of a batch, and {size} is 1; use at least 2, or "
                "--lambda_features 0"
            )
        if self.compile and (self.r1_gamma or self.r2_gamma):  # torch.compile cannot differentiate twice
            raise ValueError("--compile: does not work with --r1_gamma or --r2_gamma; leave one of them out")
        if "penalty_every" in self.explicit and not (self.r1_gamma or self.r2_gamma):
            raise ValueError("--penalty_every: does nothing without --r1_gamma or --r2_gamma; add one of them")

    def value_ranges(self) -> list[ValueRange | None]:
        """Return --value_range for each domain, None where it is not given. Raises ValueError if it is not a range."""
        return read_value_ranges(self.value_range, 2 if "X" in self.DATA_FLAGS else 1)

    def with_value_ranges(self: Options, found: Sequence[ValueRange | None]) -> Options:
        """Return the options with the range that the images of each domain were found to have, where none was given."""
        return dataclasses.replace(self, value_range=fill_value_ranges(self.value_range, found))

    def describe_flag(self, name: str) -> str:
        """Return how messages refer to an option: its flag, and the preset if the value comes from there."""
        _, values = self.PRESETS.get(self.preset or "", ("", {}))
        is_of_preset = name in values and values[name] == getattr(self, name)
        return f"--{name} of the preset {self.preset}" if is_of_preset else f"--{name}"

    def with_absolute_paths(self: Options) -> Options:
        """Return the same options with absolute paths of folders of images and of files.

        Names below data/ stay as they are.
        """
        found: dict[str, Any] = {}
        for field in option_fields(type(self)):
            value = getattr(self, field.name)
            if field.metadata["keeps_absolute"] and value is not None and value.strip():
                # os.path: pathlib raises errors for names that are too long.
                may_be_folder = field.name in (*self.DATA_FLAGS, "init_from")
                if field.name == "init_from" and not os.path.exists(value):
                    value = os.path.join(self.checkpoint_dir, value)  # the run was given without its parent
                if (os.path.exists if may_be_folder else os.path.isfile)(value):
                    found[field.name] = str(Path(value).resolve())
        return dataclasses.replace(self, **found)

    def with_images(self: Options, folders: Mapping[str, Any]) -> Options:
        """Return the options of a run (self) with other folders of images.

        Args:
            folders: by option, data or X and Y. One of X and Y may be missing.

        Raises ValueError for a flag that does not fit: --data for a run of --X and --Y, or the other way round.
        """
        fitting = ("data",) if getattr(self, "X", None) is None else ("X", "Y")
        for name in folders:
            if name not in fitting:
                flags = " and ".join(f"--{one}" for one in fitting)
                raise ValueError(f"--{name}: the images of this run are given by {flags}; use {flags} instead")
        return dataclasses.replace(self, **folders)

    def to_dict(self) -> dict[str, Any]:
        """Return every option as plain types, for JSON and checkpoints."""
        return {field.name: getattr(self, field.name) for field in option_fields(type(self))}

    @classmethod
    def from_dict(cls: type[Options], values: dict[str, Any]) -> Options:
        """Return the options that `to_dict` returned. Raises ValueError for an option that this version lacks."""
        values = {name: value for name, value in values.items() if name != "parts"}  # was an option in November 2026
        unknown = sorted(set(values) - {field.name for field in option_fields(cls)})
        if unknown:
            raise ValueError(f"option {unknown[0]!r} is unknown to this version; update the program")
        return cls(**values)

    def merge_resume_request(self: Options, request: Options) -> Options:
        """Return the options of a saved run (self), changed by the flags of the command that resumes it.

        Raises ValueError for a flag that is not resumable and differs; the message shows both values.
        """
        changes = {}
        for field in option_fields(type(self)):
            saved, asked = getattr(self, field.name), getattr(request, field.name)
            if field.name not in request.explicit or saved == asked:
                continue
            if not field.metadata["resumable"]:
                raise ValueError(
                    f"{flag_of(field)}: this run has {saved!r}, the command says {asked!r}; "
                    "leave the flag out, or start a new run from its weights with --init_from RUN"
                )
            changes[field.name] = asked
        # A new length in epochs replaces a saved length in iterations.
        if "num_epochs" in request.explicit and "train_iters" not in request.explicit:
            changes["train_iters"] = None
        folders = {name: changes.pop(name) for name in self.DATA_FLAGS if name in changes}
        return dataclasses.replace(self.with_images(folders), **changes)
