"""From a folder of images to augmented batches on the device.

Images are decoded once, in parallel, at the size that the augmentation needs, into one uint8 tensor (N, 3, R, R) on
the device. A batch is a draw of rows, augmented as a whole. Sets larger than `--cache_gb` are decoded anew for every
batch, ahead of time; the same augmentation follows. Which images make a batch is a pure function of (seed, step).
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.decoding import decode, decode_all, try_decode
from data.toy_cats import default_root, ensure_toy_cats
from utils import UserError, few, from_uint8, my_part, printable

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MOST_NAMES = 5  # of files, in one line
_BATCHES_AHEAD = 4  # batches that are being decoded while one is trained on
_DATA_ROOT = Path(__file__).parent / "data"


# ----------------------------------------------------------------------------------------------------------------------
# Folders and files


def find_folder(name: str, flag: str = "--data") -> Path:
    """Return the folder that a data argument names: a path, or a name below data/. Raises UserError if none exists."""
    if not name.strip():
        raise UserError(f"{flag}: the name is empty; give a folder of images")
    for folder in (Path(os.path.expanduser(name)), _DATA_ROOT / name):
        if os.path.isdir(folder):  # pathlib's raises an error for a name that is too long
            return folder
        if os.path.exists(folder):
            raise UserError(f"{flag}: {folder} is a file; give the folder that holds the images")
    nor = "" if os.path.isabs(name) else f", nor {os.path.normpath(_DATA_ROOT / name)}"
    raise UserError(f"{flag}: there is no folder {name}{nor}; give the folder of the images")


def toy_cats(image_size: int) -> Path:
    """Return the root of the embedded data set, drawn at `image_size` on first use. Raises UserError if it can't be."""
    try:
        return ensure_toy_cats(default_root(image_size), image_size)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--image_size, --data: the toy cats could not be drawn ({error}); use such a size, or give a folder of "
            "images"
        ) from None


class Source(NamedTuple):
    """Where the images of one domain come from: the folders to train and to test on, and the flag for messages."""

    train: Path
    test: Path | None
    flag: str


def find_images(options: Any) -> dict[str, Source]:
    """Return the source of vanilla_gan.py: the folder of --data, or the grumpy toy cats. Raises UserError."""
    if options.data is None:
        return {"images": Source(toy_cats(options.image_size) / "trainB", None, "--data")}
    return {"images": Source(find_folder(options.data, options.flag("data")), None, options.flag("data"))}


def find_domains(options: Any) -> dict[str, Source]:
    """Return the sources X and Y of cycle_gan.py: the folders of --X and --Y, or those in --data or of the toy cats.

    Raises:
        UserError: no such folder, or no trainA and trainB in it.
    """
    if options.X is not None:
        flags = {name: options.flag(name) for name in ("X", "Y")}
        return {name: Source(find_folder(getattr(options, name), flag), None, flag) for name, flag in flags.items()}
    flag = options.flag("data")
    root = toy_cats(options.image_size) if options.data is None else find_folder(options.data, flag)
    sources = {}
    for name, letter in (("X", "A"), ("Y", "B")):
        train, test = root / f"train{letter}", root / f"test{letter}"
        if not train.is_dir():
            raise UserError(f"{flag}: {root} holds no folder {train.name}; CycleGAN needs trainA and trainB there, or "
                            "give the folders of the two domains with --X and --Y")  # fmt: skip
        sources[name] = Source(train, test if test.is_dir() else None, flag)
    return sources


def list_images(folder: Path, ext: str | None = None, flag: str = "--data") -> list[Path]:
    """Return the image files of a folder by their endings, sorted by name, but for hidden ones.

    Among them is also what only looks like a file: folders, pipes, links that lead nowhere. Decoding says so.

    Args:
        ext: only files with this ending: "png", ".png" and "*.png" mean the same. None: all of EXTENSIONS.

    Raises:
        UserError: unknown ending, or no such file in the folder.
    """
    accepted = EXTENSIONS
    if ext is not None:
        accepted = ("." + ext.lower().lstrip("*").lstrip("."),)
        if accepted[0] not in EXTENSIONS:
            raise UserError(f"--ext: {ext!r} is unknown; choose from {', '.join(e[1:] for e in EXTENSIONS)}")
        flag = f"{flag} with --ext {ext}"
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")
    files = [path for path in shown if path.suffix.lower() in accepted]
    if any(not path.is_dir() for path in files):
        return files
    folders = [path.name for path in shown if path.is_dir()]
    if folders:
        raise UserError(f"{flag}: no image in {folder}, but folders: {', '.join(folders[:5])}; give one of them")
    raise UserError(f"{flag}: no image in {folder}; accepted endings: {', '.join(accepted)}")


def hold_out(files: list[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Split files into (train, test), both sorted, with about `share` of them in test: the same ones at every call.

    A share above 0 holds out one image at least.

    Raises:
        UserError: nothing would be left to train on.
    """
    count = max(round(len(files) * share), 1) if share > 0 else 0
    if count >= len(files):
        raise UserError(f"--test_split: {share} of {len(files)} images leaves none to train on; use a smaller share")
    held = set(np.random.default_rng(0).permutation(len(files))[:count].tolist())
    train = [path for i, path in enumerate(files) if i not in held]
    return train, [files[i] for i in sorted(held)]


# ----------------------------------------------------------------------------------------------------------------------
# Augmentation: pure functions of stored images and of uniform numbers in [0, 1)


def _choose(u: Tensor, count: Tensor | int) -> Tensor:
    """Turn numbers in [0, 1) into whole ones in [0, count). The product may round up to count, once in 2^24 draws."""
    return (u * count).long().clamp(max=count - 1)


def _flip_columns(u: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): the columns to read, from right to left where u < 0.5."""
    columns = torch.arange(width, device=u.device)
    return torch.where(u[:, None] < 0.5, width - 1 - columns, columns)


def basic(images: Tensor, size: int, u: Tensor) -> Tensor:
    """Nothing random: uint8 (B, 3, S, S) -> [-1, 1]."""
    return from_uint8(images)


def deluxe(images: Tensor, size: int, u: Tensor) -> Tensor:
    """Random crop and horizontal flip: uint8 (B, 3, R, R) -> (B, 3, S, S) in [-1, 1]."""
    room = images.shape[-1] - size + 1
    rows = _choose(u[:, 0], room)[:, None] + torch.arange(size, device=u.device)  # (B, S)
    cols = _choose(u[:, 1], room)[:, None] + _flip_columns(u[:, 2], size)  # (B, S)
    image, channel = torch.arange(len(images), device=u.device), torch.arange(3, device=u.device)
    index = (image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], cols[:, None, None, :])
    return from_uint8(images[index])  # (B, 3, S, S)


_ATTEMPTS = 10  # torchvision gives up after as many boxes that don't fit


def random_boxes(u: Tensor, side: int) -> Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does: area share 0.08 to 1, aspect ratio 3/4 to 4/3.

    Args:
        u: (B, 22): for each of 10 attempts a number for the area and one for the ratio, then two for the place.
        side: of the square images.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    area = (0.08 + 0.92 * u[:, :_ATTEMPTS]) * side**2  # (B, 10)
    ratio = torch.exp((2 * u[:, _ATTEMPTS : 2 * _ATTEMPTS] - 1) * math.log(4 / 3))
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths <= side) & (heights <= side)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    any_fits = fits.any(dim=1)
    width = torch.where(any_fits, widths.gather(1, first)[:, 0], side)
    height = torch.where(any_fits, heights.gather(1, first)[:, 0], side)
    top = _choose(u[:, -2], side - height + 1)
    left = _choose(u[:, -1], side - width + 1)
    return torch.stack([top, left, height, width], dim=1)


def _resize_matrix(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return (B, size, side): row i of matrix b weighs the pixels [start, start + length) that make output pixel i.

    Bilinear with antialias, as torch.nn.functional.interpolate computes it: a triangle as wide as the larger of an
    input and an output pixel.
    """
    scale = (length / size)[:, None, None]  # input pixels per output pixel
    reach = scale.clamp(min=1)
    center = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(side, device=start.device)
    weight = (1 - (pixel + 0.5 - center).abs() / reach).clamp(min=0)
    weight = weight * ((pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes (B, 4), one per image, and resize them to (B, 3, S, S), bilinear with antialias, as float."""
    side = images.shape[-1]
    rows = _resize_matrix(boxes[:, 0], boxes[:, 2], side, size)  # (B, S, R)
    cols = _resize_matrix(boxes[:, 1], boxes[:, 3], side, size)  # (B, S, R)
    return rows[:, None] @ images.float() @ cols[:, None].transpose(2, 3)  # (B, 3, S, S)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image (B, 3, H, W) to the whole of [0, 255]; flat channels stay."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images)


def deluxe_autocontrast(images: Tensor, size: int, u: Tensor) -> Tensor:
    """RandomResizedCrop, horizontal flip, and autocontrast for half of the images: (B, 3, S, S) in [-1, 1]."""
    boxes = random_boxes(u[:, :22], images.shape[-1])
    crops = resized_crop(images, boxes, size).round()  # whole again, or the contrast of a flat image would be noise
    columns = _flip_columns(u[:, 22], size)[:, None, None, :].expand_as(crops)
    crops = crops.gather(3, columns)
    return from_uint8(torch.where(u[:, 23].view(-1, 1, 1, 1) < 0.5, autocontrast(crops), crops))


class Augmentation(NamedTuple):
    """One choice of `--data_aug`.

    Attributes:
        stored_size: image size S -> side R of the squares to decode.
        uniforms: how many numbers in [0, 1) one image takes.
        apply: (stored images, S, uniforms) -> float images.
    """

    stored_size: Callable[[int], int]
    uniforms: int
    apply: Callable[[Tensor, int, Tensor], Tensor]


AUGMENTATIONS = {
    "basic": Augmentation(lambda size: size, 0, basic),
    "deluxe": Augmentation(lambda size: int(1.1 * size), 3, deluxe),
    # Twice the size, because a crop of a quarter of the area is still to have a pixel for each of its own.
    "deluxe_autocontrast": Augmentation(lambda size: 2 * size, 24, deluxe_autocontrast),
}


# ----------------------------------------------------------------------------------------------------------------------
# Batches


class ImageBatches:
    """Augmented batches of one folder.

    Args:
        files: images to train on. Unreadable ones are skipped and listed in `skipped`.
        image_size: S of the batches (B, 3, S, S).
        data_aug: a key of AUGMENTATIONS.
        seed: of the order of the images. The draws of the augmentation come from torch's generator of the device.
        cache_gb: memory for decoded images; above it they are streamed.
        num_workers: threads that decode; None or 0 means one per core.
        stream: which of several folders with the same seed this is: each has an order of its own.
        test: images that are not trained on; the attribute of that name has the readable ones.
        flag: where `files` come from, for messages.
        cache_dir: folder for decoded images; the next run takes them from there.

    Attributes:
        files: the readable files, in the order of their index.
        skipped: unreadable file -> what is wrong with it.
        cut: files, also of `test`, that have more frames or pages than the first, which is used.

    Raises:
        UserError: no file is readable.
    """

    def __init__(
        self,
        files: list[Path],
        image_size: int,
        data_aug: str,
        batch_size: int,
        seed: int,
        device: torch.device,
        cache_gb: float = 4.0,
        num_workers: int | None = None,
        stream: int = 0,
        test: Sequence[Path] = (),
        flag: str = "--data",
        cache_dir: Path | None = None,
    ):
        self.augmentation = AUGMENTATIONS[data_aug]
        self.image_size, self.batch_size, self.seed, self.stream = image_size, batch_size, seed, stream
        self.device = device
        self.stored_size = self.augmentation.stored_size(image_size)
        torch.empty(batch_size, 3, image_size, image_size, device=device)  # out of memory now, if ever, not in a run
        self.is_cached = len(files) * 3 * self.stored_size**2 <= cache_gb * 1e9
        self._pool = ThreadPoolExecutor(num_workers or os.cpu_count())
        self._streamed: dict[tuple[int, bool], list[tuple[Path, Future]]] = {}  # images of a step, decoded or being so

        self._chosen: Tensor | None = None  # places of the images of the next batch, int64 (B,) on the device
        self._streamed_batch: Tensor | None = None  # uint8 (B, 3, R, R)

        # Decode everything once: to keep it, or else to know before training which files are readable.
        decoded = decode_all(files, self.stored_size, self._pool, self.is_cached, cache_dir)
        self.files, self.skipped, self.cut, self._source = decoded.files, decoded.skipped, decoded.cut, decoded.source
        if not self.files:
            raise UserError(
                f"{flag}: none of the {len(files)} images in {files[0].parent} is readable (first: "
                f"{printable(files[0].name)}, {self.skipped[files[0]]}); accepted endings: {', '.join(EXTENSIONS)}"
            )
        self.images = decoded.images.to(device)  # (N, 3, R, R)

        # Know as well which of the images to test on are readable.
        tested = decode_all(test, image_size, self._pool, False, cache_dir)
        self.test = tested.files
        self.skipped = {**self.skipped, **tested.skipped}
        self.cut = [*self.cut, *tested.cut]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    @property
    def found(self) -> int:
        """Number of images that were found: readable or not, to train on or to test on."""
        return len(self.files) + len(self.test) + len(self.skipped)

    def iterations(self, num_epochs: int) -> int:
        """Return the number of batches that show every image at least `num_epochs` times."""
        return math.ceil(num_epochs * len(self) / self.batch_size)

    def describe(self) -> list[str]:
        """Return what was loaded, and what to know about it, as lines for the user."""
        place = f"in memory, {self.images.nbytes / 1e6:.1f} MB" if self.is_cached else "streamed from disk"
        lines = [f"{len(self)} images from {self.files[0].parent}, {self.stored_size}x{self.stored_size}, {place}"]
        lines[0] += self._source
        if self.test:
            lines.append(f"{len(self.test)} images to test on from {self.test[0].parent}")
        if self.skipped:
            lines.append(f"Warning: {len(self.skipped)} of {self.found} images are not readable:")
            lines += [f"    {path.parent.name}/{path.name}: {why}" for path, why in self.skipped.items()]
        if self.cut:
            names = [path.name for path in self.cut[:_MOST_NAMES]]
            names += [f"and {len(self.cut) - _MOST_NAMES} more"] * (len(self.cut) > _MOST_NAMES)
            has = "images have" if len(self.cut) > 1 else "image has"
            lines.append(f"{len(self.cut)} {has} several frames, of which the first is used: {', '.join(names)}")
        if len(self) < self.batch_size:
            lines.append(f"Warning: {len(self)} images make less than a batch of {self.batch_size}: it repeats some")
        return [printable(line) for line in lines]

    def preview(self, count: int) -> Tensor:
        """Return the first `count` images in the order of the run, with draws of their own, (count, 3, S, S)."""
        return torch.cat([self.batch(step, whole=True) for step in range(math.ceil(count / self.batch_size))])[:count]

    def to_look_at(self, count: int) -> Tensor:
        """Return up to `count` images without augmentation, (n, 3, S, S) in [-1, 1]: of `test`, if there are any."""
        images = [decode(path, self.image_size) for path in (self.test or self.files)[:count]]
        return from_uint8(torch.stack(images)).to(self.device)

    def indices(self, step: int) -> np.ndarray:
        """Return the images of batch `step` (from 0), int64 (B,): a pure function of (seed, stream, step).

        The batches are cut from one endless sequence of passes, each a permutation of all images, so that every pass
        shows every image once, whether or not the batch size divides their number.
        """
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, places = np.divmod(positions, len(self))
        orders = {
            p: np.random.default_rng((self.seed, p, self.stream)).permutation(len(self))
            for p in np.unique(passes).tolist()
        }
        return np.array([orders[p][i] for p, i in zip(passes.tolist(), places.tolist(), strict=True)])

    def files_of(self, step: int) -> list[Path]:
        """Return the files of batch `step` (from 0)."""
        return [self.files[place] for place in self.indices(step).tolist()]

    def batch(self, step: int, whole: bool = False) -> Tensor:
        """Return the augmented batch of `step` (from 0): float32 (B, 3, S, S) in [-1, 1] on the device.

        Of several processes each gets its part of the batch, or all of it if `whole`; the draws are the same.
        """
        self.choose(step, whole)
        return self.draw(whole)

    def choose(self, step: int, whole: bool = False) -> None:
        """Choose the images of batch `step` for `draw`, without waiting for the device."""
        if not self.is_cached:
            self._streamed_batch = self._next_streamed(step, whole).to(self.device, non_blocking=True)
            return
        places = self._places(step, whole)
        if self._chosen is None or len(self._chosen) != len(places):
            self._chosen = places.to(self.device)
        else:  # where a CUDA graph looks for them
            self._chosen.copy_(places.pin_memory() if self.device.type == "cuda" else places, non_blocking=True)

    def draw(self, whole: bool = False) -> Tensor:
        """Return the augmented batch that was chosen. Nothing here depends on the step but its images."""
        uniforms = torch.rand(self.batch_size, self.augmentation.uniforms, device=self.device)
        uniforms = uniforms if whole else my_part(uniforms)
        stored = self.images[self._chosen] if self.is_cached else self._streamed_batch  # uint8 (B, 3, R, R)
        return self.augmentation.apply(stored, self.image_size, uniforms)

    def _places(self, step: int, whole: bool) -> Tensor:
        """Return the images of batch `step`, or those of this process's part."""
        places = torch.from_numpy(self.indices(step))
        return places if whole else my_part(places)

    def _next_streamed(self, step: int, whole: bool) -> Tensor:
        """Return the stored images of batch `step`, uint8 (B, 3, R, R), while threads decode the batches after it."""
        for ahead in range(step, step + 1 + _BATCHES_AHEAD):
            if (ahead, whole) not in self._streamed:
                files = [self.files[place] for place in self._places(ahead, whole).tolist()]
                self._streamed[ahead, whole] = [
                    (path, self._pool.submit(try_decode, path, self.stored_size)) for path in files
                ]
        images = []
        for path, decoded in self._streamed[step, whole]:
            image = decoded.result()
            if isinstance(image, str):
                raise UserError(f"{path} could be read before but not now ({image}); put it back and use --resume")
            images.append(image)
        self._streamed = {key: batch for key, batch in self._streamed.items() if key[0] > step and key[1] == whole}
        batch = torch.stack(images)  # (B, 3, R, R)
        return batch.pin_memory() if self.device.type == "cuda" else batch


def load_images(sources: dict[str, Source], options: Any, device: torch.device) -> dict[str, ImageBatches]:
    """Find and decode the images of each source.

    Args:
        options: ext, test_split, image_size, data_aug, batch_size, seed, cache_gb (for all sources together),
            num_workers, strict, and checkpoint_dir, in whose folder .cache decoded images are kept.

    Raises:
        UserError: a folder without images, or without readable ones; with `strict` also one unreadable image.
    """
    data = {}
    cache_dir = Path(options.checkpoint_dir) / ".cache"
    for stream, (name, source) in enumerate(sources.items()):
        train, test = hold_out(list_images(source.train, options.ext, source.flag), options.test_split)
        if source.test is not None and not options.test_split:
            test = list_images(source.test, options.ext, source.flag)
        data[name] = ImageBatches(
            train, options.image_size, options.data_aug, options.batch_size, options.seed, device,
            options.cache_gb / len(sources), options.num_workers, stream, test, source.flag, cache_dir,
        )  # fmt: skip
    skipped = {path: why for images in data.values() for path, why in images.skipped.items()}
    if options.strict and skipped:
        total = sum(images.found for images in data.values())
        names = few([f"{printable(str(path))} ({why})" for path, why in skipped.items()])
        raise UserError(
            f"--strict: {len(skipped)} of {total} images are not readable: {names}. Mend them, take them out, or leave "
            "--strict out to go on without them"
        )
    return data
