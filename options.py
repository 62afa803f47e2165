"""Every option, declared once: frozen dataclasses, the presets, and the command line built from both.

Nothing here imports torch, so that `--help` and a mistyped flag answer at once. An explicit flag beats the preset, the
preset beats the default.
"""

import argparse
import dataclasses
import difflib
import math
import os
import types
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

DIFFAUGMENT_ALL = "color,translation,cutout"
DEVICES = ("auto", "cuda", "mps", "cpu")
LARGEST = 10**9  # whole number, where no option says otherwise: beyond it, sizes overflow
LONGEST_NAME = 255  # bytes that file systems allow for the name of a folder


def option(
    default: Any,
    help: str,
    group: str,
    *,
    choices: Sequence | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    aliases: Sequence[str] = (),
    bare: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare one field of an options class.

    Args:
        resumable: may differ between a run and its resumption, because it does not change what is computed.
        aliases: other flags for the same field.
        bare: what the flag means when no value follows it.
    """
    metadata = dict(
        help=help, group=group, choices=choices, at_least=at_least, above=above, at_most=at_most, below=below,
        resumable=resumable, aliases=aliases, bare=bare, metavar=metavar,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


Options = TypeVar("Options", bound="CommonOptions")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What both training scripts take."""

    # The command line's own record: the fields that the user named. Neither a flag nor part of a run.
    given: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)

    # Name -> (what it is, its options). `toy_cats` holds when the user names neither a preset nor any of DATA_FLAGS.
    PRESETS: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {}
    DATA_FLAGS: ClassVar[tuple[str, ...]] = ()

    # fmt: off
    preset: str | None = option(
        None, "named set of options; `list` prints them all; without a data flag it is toy_cats", "Run")
    name: str | None = option(
        None, "name of the run's folder; default: script, data, augmentation, losses and a number", "Run",
        resumable=True)
    checkpoint_dir: str = option(
        "checkpoints", "folder that holds the run folders", "Run", resumable=True, metavar="FOLDER")
    sample_dir: str | None = option(
        None, "write the grids to FOLDER/<name>/ instead of the run folder's samples/", "Run", metavar="FOLDER")
    resume: str | None = option(
        None, "go on with a run from its newest checkpoint; without a value: the run of --name", "Run",
        resumable=True, bare="", metavar="RUN_FOLDER")

    image_size: int = option(64, "side of the square images, in pixels", "Data", choices=(32, 64, 128, 256))
    data_aug: str = option(
        "basic", "basic: resize, center crop; deluxe: resize to 1.1 S, random crop, flip; "
        "deluxe_autocontrast: RandomResizedCrop, flip, autocontrast", "Data",
        choices=("basic", "deluxe", "deluxe_autocontrast"), aliases=("--data_preprocess",))
    ext: str | None = option(
        None, "use only the files with this ending, such as png; default: every image", "Data")
    test_split: float = option(
        0.0, "share of each folder's images to hold out from training (listed in data.json); testA and testB are not "
        "used then", "Data", at_least=0, below=1)
    cache_gb: float = option(
        4.0, "keep the decoded images in memory up to this many GB; stream larger sets from disk", "Data",
        at_least=0, resumable=True)
    strict: bool = option(
        False, "an unreadable image is an error; else it is skipped and named", "Data", resumable=True)
    num_workers: int | None = option(
        None, "threads that decode images; default and 0: one per core", "Data", at_least=0, at_most=1000,
        resumable=True)

    norm: str = option("instance", "normalization in G and D", "Networks", choices=("instance", "batch", "none"))
    spectral_norm: bool = option(False, "spectral normalization of D's convolutions", "Networks")
    init_type: str = option(
        "pytorch", "initialization of the convolutions; pytorch: its default, normal: N(0, 0.02)", "Networks",
        choices=("pytorch", "normal", "xavier", "kaiming", "orthogonal"))

    gan_mode: str = option("lsgan", "adversarial objective", "Objective", choices=("lsgan", "vanilla", "hinge"))
    use_diffaug: str = option(
        "", f"differentiable augmentation in both updates; without a value: {DIFFAUGMENT_ALL}", "Objective",
        bare=DIFFAUGMENT_ALL, metavar="POLICY")

    train_iters: int | None = option(
        None, "number of iterations; wins over --num_epochs", "Training", at_least=1, resumable=True)
    batch_size: int = option(16, "images per iteration", "Training", at_least=1)
    lr: float = option(5e-4, "learning rate of Adam, for G and D", "Training", above=0)
    beta1: float = option(0.5, "Adam's decay of the mean gradient", "Training", at_least=0, below=1)
    beta2: float = option(0.999, "Adam's decay of the mean squared gradient", "Training", at_least=0, below=1)
    lr_policy: str = option(
        "constant", "linear: constant for the first half, then down to 0; cosine: half a cosine down to 0",
        "Training", choices=("constant", "linear", "cosine"))
    ema_decay: float = option(
        0.99, "moving average of G's weights, used for the grids; 0 turns it off", "Training", at_least=0, below=1)
    seed: int = option(11, "seed of weights, data order, augmentation and noise", "Training", at_least=0,
                       at_most=2**63 - 1)

    log_step: int = option(10, "iterations between rows of losses.csv", "Output", at_least=1, resumable=True)
    sample_every: int = option(200, "iterations between grids", "Output", at_least=1, resumable=True)
    checkpoint_every: int = option(500, "iterations between checkpoints", "Output", at_least=1, resumable=True)
    keep_checkpoints: int | None = option(
        None, "keep only the newest N checkpoints, and best.pt; default: all", "Output", at_least=2, resumable=True,
        metavar="N")
    eval_every: int = option(
        0, "iterations between evaluations, which go to metrics.csv, a curve in losses.png, and best.pt; 0: none",
        "Output", at_least=0, resumable=True)
    features: str = option(
        "pixels", "what evaluations compare images in; pixels: 16x16 colors, without a network; inception: FID, KID; "
        "or a file, as for evaluate.py", "Output", resumable=True, metavar="{pixels,inception,FILE}")
    inception_weights: str | None = option(
        None, "Inception weights that you have downloaded", "Output", resumable=True, metavar="FILE")

    device: str = option(
        "auto", "auto: CUDA, else MPS, else CPU", "Machine", choices=DEVICES, resumable=True)
    amp: str = option(
        "auto", "mixed precision; auto: bf16 on a GPU that has it and on a CPU with AMX, else off", "Machine",
        choices=("auto", "off", "bf16", "fp16"), resumable=True)
    compile: bool = option(False, "torch.compile the networks (a minute at the start)", "Machine")
    cuda_graph: bool = option(
        True, "on CUDA, record a whole step once and replay it: the same result, faster", "Machine", resumable=True)
    deterministic: bool = option(False, "only deterministic kernels: the same run twice on one GPU", "Machine")
    # fmt: on

    def check(self) -> None:
        """Raise ValueError, with the flag, the value and the remedy in one line, if any option is out of its range."""
        for field in option_fields(type(self)):
            _check_range(field, getattr(self, field.name))
        for name in filter(None, (part.strip() for part in self.use_diffaug.split(","))):
            if name not in DIFFAUGMENT_ALL.split(","):
                raise ValueError(f"--use_diffaug: {name!r} is unknown; choose from {DIFFAUGMENT_ALL}")
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\\0")):
            raise ValueError(f"--name: {self.name!r} is no folder name; use one without / and \\, beside other runs")
        if self.name is not None and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in self.name):
            raise ValueError(f"--name: {self.name!r} has control characters or bytes that are no text; leave them out")
        if self.name is not None and len(self.name.encode()) > LONGEST_NAME:
            raise ValueError(f"--name: {self.name[:20]}... is too long; use at most {LONGEST_NAME} bytes")
        if any(unicodedata.category(c) == "Cs" for c in self.checkpoint_dir):  # TensorBoard can't write there
            raise ValueError(
                f"--checkpoint_dir: {self.checkpoint_dir!r} has bytes that are no text; use another folder"
            )
        if self.resume == "" and self.name is None:
            raise ValueError("--resume: no run is named; use --resume RUN_FOLDER, or add --name NAME")

    def check_together(self) -> None:
        """Raise ValueError, as `check`, if options don't go together. A request to resume may pass without."""
        for flag in ("features", "inception_weights"):
            if flag in self.given and not self.eval_every:
                raise ValueError(f"--{flag}: does nothing without --eval_every; add that flag")
        if self.inception_weights is not None and self.features != "inception":
            raise ValueError("--inception_weights: does nothing without --features inception; add that flag")

    def name_parts(self) -> list[str]:
        """Return what the default name of a run tells: data, augmentation, losses."""
        parts = [*self.data_names(), self.data_aug, self.gan_mode, *self.extra_losses()]
        return parts + ["diffaug"] * bool(self.use_diffaug)

    def data_names(self) -> list[str]:
        """Return the names of the folders of images, without those above them."""
        return [Path(self.data).resolve().name if self.data is not None else "toy_cats"]

    def extra_losses(self) -> list[str]:
        """Return the losses beside the adversarial one."""
        return []

    def flag(self, name: str) -> str:
        """Return how to speak of an option in a message: its flag, and the preset if the value is the preset's."""
        _, values = self.PRESETS.get(self.preset, ("", {}))
        is_of_preset = name in values and values[name] == getattr(self, name)
        return f"--{name} of the preset {self.preset}" if is_of_preset else f"--{name}"

    def hints(self, fewest: int, total: int) -> list[str]:
        """Return advice for a run of `total` iterations on folders of at least `fewest` images."""
        hints = []
        if fewest < 1000 and not self.use_diffaug:
            hints.append(f"Hint: D soon knows {fewest} images by heart; --use_diffaug keeps it from that")
        if total < 1000:
            hints.append(f"Hint: {total} iterations are few for a GAN; --train_iters 3000 shows more")
        return hints

    def with_absolute_folders(self: Options) -> Options:
        """Return the same options, with folders of images, and files, by their whole path, for use from anywhere.

        Names below data/ stay as they are.
        """
        given = {name: getattr(self, name) for name in self.DATA_FLAGS if getattr(self, name) is not None}
        # os.path, as pathlib raises errors for the home of a user who isn't there and for names that are too long.
        paths = {name: Path(os.path.expanduser(value)) for name, value in given.items() if value.strip()}
        found = {name: str(path.resolve()) for name, path in paths.items() if os.path.isdir(path)}
        for name in ("features", "inception_weights"):
            path = Path(os.path.expanduser(getattr(self, name) or ""))
            if os.path.isfile(path):
                found[name] = str(path.resolve())
        return dataclasses.replace(self, **found)

    def to_dict(self) -> dict[str, Any]:
        """Return every option as plain types, for JSON and checkpoints."""
        return {field.name: getattr(self, field.name) for field in option_fields(type(self))}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CommonOptions":
        """The inverse of `to_dict`. Raises ValueError for an option that this version doesn't know."""
        unknown = sorted(set(values) - {field.name for field in option_fields(cls)})
        if unknown:
            raise ValueError(f"option {unknown[0]!r} is unknown to this version; update the program")
        return cls(**values)

    def resumed_with(self, request: "CommonOptions") -> "CommonOptions":
        """Return the options of a saved run (self), changed by the flags of the command that resumes it.

        Raises ValueError for a flag that isn't resumable and differs; the message shows both values.
        """
        changes = {}
        for field in option_fields(type(self)):
            saved, asked = getattr(self, field.name), getattr(request, field.name)
            if field.name not in request.given or saved == asked:
                continue
            if not field.metadata["resumable"]:
                raise ValueError(
                    f"--{field.name}: this run has {saved!r}, the command says {asked!r}; "
                    "leave the flag out, or start a new run"
                )
            changes[field.name] = asked
        # A length in epochs given now replaces a length in iterations given then.
        if "num_epochs" in request.given and "train_iters" not in request.given:
            changes["train_iters"] = None
        return dataclasses.replace(self, **changes)


# Parts of presets: how the course projects train, their cats, and their models for 256x256.
_COURSE = dict(lr=2e-4, ema_decay=0.0)
_CATS = dict(X="cat/grumpifyAprocessed", Y="cat/grumpifyBprocessed")
_LARGE = dict(
    image_size=256, data_aug="deluxe", disc="patch", use_cycle_consistency_loss=True, use_identity_loss=True,
    lambda_cycle=5.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VanillaOptions(CommonOptions):
    """What vanilla_gan.py takes."""

    # fmt: off
    data: str | None = option(
        None, "folder of images, or a name below data/; default: the embedded toy cats", "Data", resumable=True,
        metavar="FOLDER")
    num_epochs: int = option(100, "passes over the images", "Training", at_least=1, resumable=True)
    conv_dim: int = option(32, "channels of the layers next to the image", "Networks", at_least=1)
    noise_size: int = option(100, "length of the latent z", "Networks", at_least=1)
    disc: str = option(
        "dc", "discriminator; dc: one logit per image, patch: one per 46x46 patch", "Networks",
        choices=("dc", "patch"))
    upsample: str = option(
        "nearest", "generator's up-sampling; nearest: x2 then conv 3x3, deconv: transposed conv k4", "Networks",
        choices=("nearest", "deconv"))

    DATA_FLAGS: ClassVar[tuple[str, ...]] = ("data",)
    PRESETS: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "toy_cats": (
            "the default without --data: batch norm keeps the toy cats' backgrounds in color",
            dict(norm="batch", use_diffaug="translation,cutout")),
        "hasey": (
            "Hasey: grumpy cats, transposed convolutions, batch norm, deluxe, 100 epochs",
            dict(_COURSE, data="cat/grumpifyBprocessed", upsample="deconv", norm="batch", data_aug="deluxe",
                 num_epochs=100)),
        "agrawal": (
            "Agrawal, 16-726 HW3: grumpy cats, instance norm, deluxe with autocontrast, DiffAugment, 6,400 iterations",
            dict(_COURSE, data="cat/grumpifyBprocessed", data_aug="deluxe_autocontrast", use_diffaug=DIFFAUGMENT_ALL,
                 train_iters=6400)),
        "grumpycat64": (
            "Leo: grumpy cats, basic, 500 epochs; add --data_aug deluxe, --use_diffaug, --spectral_norm for the rest "
            "of the table",
            dict(_COURSE, data="cat/grumpifyBprocessed", num_epochs=500)),
        "grumpycat64_best": (
            "the best that we found so far for the same cats: patch, DiffAugment and our defaults, 6,400 iterations",
            dict(data="cat/grumpifyBprocessed", disc="patch", use_diffaug=DIFFAUGMENT_ALL, train_iters=6400)),
        "grumpycat256": (
            "Leo: the same at 256x256, deluxe, DiffAugment",
            dict(_COURSE, data="cat/grumpifyBprocessed", image_size=256, data_aug="deluxe",
                 use_diffaug=DIFFAUGMENT_ALL, num_epochs=500)),
    }
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class CycleOptions(CommonOptions):
    """What cycle_gan.py takes."""

    # fmt: off
    X: str | None = option(
        None, "folder of images of domain X, or a name below data/", "Data", resumable=True, metavar="FOLDER")
    Y: str | None = option(None, "the same for domain Y", "Data", resumable=True, metavar="FOLDER")
    data: str | None = option(
        None, "instead of --X and --Y: folder that holds trainA and trainB, or a name below data/; testA and testB are "
        "used for the grids; default: the embedded toy cats", "Data", resumable=True, metavar="FOLDER")
    image_size: int = option(
        64, "side of the square images, in pixels: any from 32 on that the generators can halve, a power of two up to "
        "256 for --disc dc", "Data", at_least=32)
    train_iters: int = option(10_000, "number of iterations", "Training", at_least=1, resumable=True)
    pool_size: int = option(
        0, "show D earlier fakes too, out of a history of N, as the CycleGAN paper does with 50; 0: only new ones",
        "Training", at_least=0)

    gen: str = option(
        "cycle", "generators; cycle: convolutions k4 s2, residual blocks, up-sampling; resnet_*: those of the CycleGAN "
        "paper", "Networks", choices=("cycle", "resnet_6blocks", "resnet_9blocks"))
    n_res_blocks: int | None = option(
        None, "residual blocks of a generator; default: 3 for cycle, else as the name says", "Networks", at_least=0)
    res_block_convs: int | None = option(
        None, "convolutions of a residual block; default: 1 for cycle, else 2", "Networks", choices=(1, 2))
    n_downsample: int = option(
        2, "halvings of the image in a generator", "Networks", at_least=1, at_most=5)
    upsample: str = option(
        "nearest", "up-sampling of the generators; nearest: x2 then conv 3x3, deconv: transposed conv", "Networks",
        choices=("nearest", "deconv"))
    g_conv_dim: int = option(32, "channels of the generators' layers next to the image", "Networks", at_least=1)
    disc: str = option(
        "dc", "discriminators; dc: one logit per image; patch, patch70, patch94: one per 46x46, 70x70 (CycleGAN "
        "paper), 94x94 patch", "Networks", choices=("dc", "patch", "patch70", "patch94"))
    d_conv_dim: int = option(32, "channels of the discriminators' first layer", "Networks", at_least=1)

    use_cycle_consistency_loss: bool = option(
        False, "punish what X to Y to X and Y to X to Y don't bring back", "Objective")
    cycle_loss: str = option(
        "L1", "distance of the reconstructions; SSIM: 0.84 (1 - SSIM) + 0.16 L1", "Objective",
        choices=("L1", "L2", "SSIM"), aliases=("--loss_type",))
    lambda_cycle: float = option(10.0, "weight of the cycle consistency loss", "Objective", at_least=0)
    use_identity_loss: bool = option(
        False, "punish (L1) what a generator changes in images that are of its target domain", "Objective")
    lambda_identity: float | None = option(
        None, "weight of the identity loss; default: half of --lambda_cycle", "Objective", at_least=0)

    DATA_FLAGS: ClassVar[tuple[str, ...]] = ("X", "Y", "data")
    PRESETS: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "toy_cats": (
            "the default without images: patch discriminators, cycle and identity loss, DiffAugment, 1,000 iterations",
            dict(disc="patch", use_cycle_consistency_loss=True, use_identity_loss=True,
                 use_diffaug="translation,cutout", train_iters=1000)),
        "hasey": (
            "Hasey: gray and grumpy cats, transposed convolutions, batch norm, MSE cycle loss, 100,000 iterations",
            dict(_COURSE, **_CATS, upsample="deconv", norm="batch", data_aug="deluxe",
                 use_cycle_consistency_loss=True, cycle_loss="L2", train_iters=100_000)),
        "agrawal": (
            "Agrawal, 16-726 HW3: cats, deluxe with autocontrast, patch, cycle, DiffAugment, 10,000 iterations",
            dict(_COURSE, **_CATS, data_aug="deluxe_autocontrast", disc="patch", use_cycle_consistency_loss=True,
                 use_diffaug=DIFFAUGMENT_ALL)),
        "grumpycat64": (
            "Leo: cats, patch, cycle, 10,000 iterations; --disc dc, --use_identity_loss, --cycle_loss SSIM, "
            "--use_diffaug, --spectral_norm for the rest of the table",
            dict(_COURSE, **_CATS, data_aug="deluxe", disc="patch", use_cycle_consistency_loss=True)),
        "grumpycat64_best": (
            "our best so far for the same cats: patch, cycle, DiffAugment and our defaults, 3,000 iterations",
            dict(_CATS, disc="patch", use_cycle_consistency_loss=True, use_diffaug=DIFFAUGMENT_ALL, train_iters=3000)),
        "apple2orange64": (
            "Leo: the same for apples and oranges",
            dict(_COURSE, data="apple2orange", data_aug="deluxe", disc="patch", use_cycle_consistency_loss=True)),
        "yosemite128": (
            "tooth2: summer to winter at 128x128, 6 residual blocks of two convolutions, batch norm, L1 cycle loss",
            dict(_COURSE, data="summer2winter_yosemite", image_size=128, disc="patch94", n_downsample=3,
                 n_res_blocks=6, res_block_convs=2, upsample="deconv", norm="batch", g_conv_dim=64, d_conv_dim=64,
                 use_cycle_consistency_loss=True)),
        "monet256": (
            "Monet CycleGAN: 256x256, batch 1, ResNet with 9 blocks, 70x70 patches, cycle and identity, 80/20 split",
            dict(_COURSE, X="gan-getting-started/monet_jpg", Y="gan-getting-started/photo_jpg", test_split=0.2,
                 image_size=256, batch_size=1, gen="resnet_9blocks", upsample="deconv", disc="patch70", g_conv_dim=64,
                 d_conv_dim=64, init_type="normal", pool_size=50, use_cycle_consistency_loss=True,
                 use_identity_loss=True, train_iters=60_000)),
        "cats256": (
            "Leo: cats at 256x256, patch, cycle and identity, lambda 5",
            dict(_COURSE, **_CATS, **_LARGE)),
        "apple2orange256": (
            "Leo: the same for apples and oranges",
            dict(_COURSE, data="apple2orange", **_LARGE)),
    }
    # fmt: on

    def data_names(self) -> list[str]:
        if self.X is None:
            return super().data_names()
        return [Path(folder).resolve().name for folder in (self.X, self.Y)]

    def extra_losses(self) -> list[str]:
        cycle = ["cycle", self.cycle_loss] if self.use_cycle_consistency_loss else []
        return cycle + ["identity"] * self.use_identity_loss

    def hints(self, fewest: int, total: int) -> list[str]:
        hints = super().hints(fewest, total)
        if not self.use_cycle_consistency_loss:
            hints.append(
                "Hint: a translation may show something else; --use_cycle_consistency_loss asks for a way back"
            )
        if self.X is not None and self.X == self.Y:
            hints.append("Hint: --X and --Y are the same folder")
        return hints

    def check_together(self) -> None:
        super().check_together()
        if self.data is not None and (self.X, self.Y) != (None, None):
            raise ValueError(f"--data: {self.data} beside --X or --Y; give either the one or the two")
        if (self.X is None) != (self.Y is None):
            given, missing = ("X", "Y") if self.Y is None else ("Y", "X")
            raise ValueError(f"--{missing}: missing beside --{given} {getattr(self, given)}; give both folders")
        stride = 2**self.n_downsample
        if self.image_size % stride or self.image_size < 4 * stride:
            raise ValueError(
                f"--image_size: {self.image_size} can't be halved {self.n_downsample} times (--n_downsample) to 4x4 or "
                f"more; use a multiple of {stride} from {max(32, 4 * stride)} on"
            )
        if self.disc == "dc" and self.image_size not in (32, 64, 128, 256):
            raise ValueError(f"--image_size: {self.image_size} with --disc dc; use 32, 64, 128 or 256, or --disc patch")
        for flag in ("cycle_loss", "lambda_cycle"):
            if flag in self.given and not self.use_cycle_consistency_loss:
                raise ValueError(f"--{flag}: does nothing without --use_cycle_consistency_loss; add that flag")
        if "lambda_identity" in self.given and not self.use_identity_loss:
            raise ValueError("--lambda_identity: does nothing without --use_identity_loss; add that flag")
        if 0 < self.pool_size < self.batch_size:
            raise ValueError(
                f"--pool_size: {self.pool_size} is less than a batch of {self.batch_size}; use at least that, or 0"
            )


def option_fields(cls: type[CommonOptions]) -> list[dataclasses.Field]:
    """Return the fields of an options class that are flags."""
    return [field for field in dataclasses.fields(cls) if field.metadata]


def _check_range(field: dataclasses.Field, value: Any) -> None:
    """Raise ValueError if a value is not among the choices of its field or not within its bounds."""
    if value is None:
        return
    limits = field.metadata
    if limits["choices"] is not None and value not in limits["choices"]:
        raise ValueError(f"--{field.name}: {value!r} is unknown; choose from {', '.join(map(str, limits['choices']))}")
    at_most = limits["at_most"]
    if isinstance(value, int) and at_most is None and limits["choices"] is None:
        at_most = LARGEST
    bounds = [
        ("at least", limits["at_least"], lambda bound: value >= bound),
        ("above", limits["above"], lambda bound: value > bound),
        ("at most", at_most, lambda bound: value <= bound),
        ("below", limits["below"], lambda bound: value < bound),
    ]
    stated = " and ".join(f"{words} {bound}" for words, bound, _ in bounds if bound is not None)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{field.name}: {value} is no finite number; use one {stated}")
    if not all(holds(bound) for _, bound, holds in bounds if bound is not None):
        raise ValueError(f"--{field.name}: {value} is out of range; use a number {stated}")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        hint = "".join(
            f", did you mean {flag}?" for flag in difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
        )
        message = " ".join(message.split())  # an argument may have lines of its own
        self.exit(2, f"{self.prog}: error: {message}{hint} (--help lists the options)\n")


def number(kind: type, range_: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Return what reads a number of a range for argparse; `range_` is the range in words."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}; use one {range_}") from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text} is out of range; use a number {range_}")
        return value

    return read


def build_parser(cls: type[CommonOptions], prog: str, manual: str) -> argparse.ArgumentParser:
    """Return the command line of an options class: every field a flag, in its group, with choices and default."""
    parser = OneLineParser(
        prog=prog,
        usage="%(prog)s [options]",
        description=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # what the user leaves out stays out: presets and defaults come later
    )
    hints = get_type_hints(cls)
    fields = option_fields(cls)
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(f.metadata["group"] for f in fields)}
    common = {field.name for field in option_fields(CommonOptions)}
    for field in sorted(fields, key=lambda field: field.name in common):  # the script's own come first in each group
        meta = field.metadata
        kind = hints[field.name]
        if get_origin(kind) in (Union, types.UnionType):  # `int | None` is read as int
            kind = next(part for part in get_args(kind) if part is not type(None))
        shown = "" if field.default in (None, "") else f" (default: {field.default})"
        arguments: dict[str, Any] = dict(dest=field.name, help=meta["help"].replace("%", "%%") + shown)
        flags = [f"--{field.name}", *meta["aliases"]]
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            # `check` refuses what is not among the choices: argparse's own words differ between versions of Python.
            braces = meta["choices"] and "{" + ",".join(map(str, meta["choices"])) + "}"
            arguments.update(type=kind, metavar=braces or meta["metavar"])
            if meta["bare"] is not None:
                arguments.update(nargs="?", const=meta["bare"])
        groups[meta["group"]].add_argument(*flags, **arguments)
        if kind is not bool and meta["bare"]:  # a preset may have turned it on
            groups[meta["group"]].add_argument(
                f"--no-{field.name}", dest=field.name, action="store_const", const="", help=f"turn --{field.name} off"
            )
    return parser


def parse_command_line(cls: type[Options], argv: Sequence[str], prog: str, manual: str) -> Options:
    """Read a command line into checked options.

    Args:
        prog: name of the script, for messages.
        manual: what `--help` shows above the options.

    Raises:
        SystemExit: code 0 after --help and `--preset list`; code 2 after one line on stderr for a mistake.
    """
    parser = build_parser(cls, prog, manual)
    given = vars(parser.parse_args(argv))
    preset = given.get("preset")
    if preset is None and not given.keys() & set(cls.DATA_FLAGS):
        preset = "toy_cats"
    if preset == "list":
        width = max(map(len, cls.PRESETS))
        print("\n".join(f"{name:{width}}  {what}" for name, (what, _) in cls.PRESETS.items()))
        parser.exit()
    if preset is not None and preset not in cls.PRESETS:
        parser.error(f"--preset: {preset!r} is unknown; choose from {', '.join(cls.PRESETS)}")
    values = {**(cls.PRESETS[preset][1] if preset else {}), **given}
    # The user's images replace those of the preset, by whichever flags.
    if given.keys() & set(cls.DATA_FLAGS):
        values = {name: value for name, value in values.items() if name in given or name not in cls.DATA_FLAGS}
    # A length in epochs on the command line beats a length in iterations from the preset.
    if "num_epochs" in given and "train_iters" not in given:
        values.pop("train_iters", None)
    try:
        options = cls(**{**values, "preset": preset}, given=frozenset(given))
        options.check()
        if options.resume is None:
            options.check_together()
    except ValueError as error:
        parser.error(str(error))
    return options
