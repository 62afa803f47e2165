"""Images as augmented batches on the device.

Images are decoded once, in parallel, at the size that the augmentation needs, into one uint8 tensor (N, 3, R, R) on
the device. A batch is a selection of rows, augmented as a whole. Sets larger than `--cache_gb` are decoded again for
every batch, ahead of time, and augmented in the same way. The images of a batch are a pure function of (seed, step).
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from images.augment import AUGMENTATIONS
from images.decoding import Decoded, decode, decode_all, decode_some, describe_error
from images.values import ValueRange
from sources.domains import Domain, find_domains
from sources.folders import EXTENSIONS, FolderSource
from system.processes import local_main_first, local_shard
from utils import LOG, UserError, from_uint8, printable, shorten

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions

BATCHES_AHEAD = 4  # number of batches that are decoded while the model trains on one


class ImageBatches:
    """Augmented batches of one domain.

    Args:
        domain: images to train on, and perhaps to test on. Unreadable ones are skipped.
        image_size: S of the batches (B, 3, S, S).
        data_aug: a key of AUGMENTATIONS.
        seed: seed of the order of the images. The augmentation draws from torch's generator of the device.
        cache_gb: memory for decoded images; sets that need more are streamed.
        num_workers: number of threads that decode; None or 0 means one per core.
        stream: number of the domain: domains with the same seed have different orders.
        cache_dir: folder in which decoded images are kept for the next run.
        value_range: the values of images with more than 8 bits that become 0 and 255; None: chosen from the values of
            all images to train on.

    Attributes:
        source, test: the readable images to train on and to test on.
        skipped: folder and name of an unreadable image -> the reason.
        value_range: the one that is used for training and test images; None if all of them have 8 bits.

    Raises:
        UserError: no image is readable.
    """

    def __init__(
        self,
        domain: Domain,
        image_size: int,
        data_aug: str,
        batch_size: int,
        seed: int,
        device: torch.device,
        cache_gb: float = 4.0,
        num_workers: int | None = None,
        stream: int = 0,
        cache_dir: Path | None = None,
        value_range: ValueRange | None = None,
    ):
        self.augmentation = AUGMENTATIONS[data_aug]
        self.image_size, self.batch_size, self.seed, self.stream = image_size, batch_size, seed, stream
        self.device, self._num_new = device, domain.num_new
        self.stored_size = self.augmentation.stored_size(image_size)
        # Allocate a batch now, so that out-of-memory errors come before training.
        torch.empty(batch_size, 3, image_size, image_size, device=device)
        count = len(domain.train.names)
        self.is_cached = count * 3 * self.stored_size**2 <= cache_gb * 1e9
        self._pool = ThreadPoolExecutor(num_workers or os.cpu_count())
        self._streamed: dict[tuple[int, bool], list[Future[Decoded]]] = {}  # pending or finished decodes, by step
        self.selected: Tensor | None = None  # indices of the images of the next batch, int64 (B,) on the device
        self._streamed_batch: Tensor | None = None  # uint8 (B, 3, R, R)

        # Decode all images once: to keep them, or else to know before training which of them are readable.
        decoded = decode_all(
            domain.train, self.stored_size, self._pool, self.is_cached, cache_dir, value_range=value_range
        )
        if not decoded.readable:
            first = f"{printable(domain.train.names[0])}, {decoded.skipped[0]}"
            accepted = (
                f"; accepted extensions: {', '.join(EXTENSIONS)}" if isinstance(domain.train, FolderSource) else ""
            )
            raise UserError(
                f"{domain.flag}: none of the {count} images in {domain.train.location} is readable (first: {first})"
                f"{accepted}"
            )
        self.source = domain.train.select(decoded.readable)
        self.images, self._note = decoded.images.to(device), decoded.note  # (N, 3, R, R)

        # Find out which of the test images are readable, too.
        test = domain.test if domain.test is not None else FolderSource([])
        value_range = decoded.scale.range if decoded.scale else value_range
        tested = decode_all(test, image_size, self._pool, False, cache_dir, "test", value_range)
        self.test = test.select(tested.readable)
        self._scale = decoded.scale or tested.scale
        self.value_range = self._scale.range if self._scale else None
        self._is_range_unused = value_range is not None and self._scale is None

        self.skipped: dict[str, str] = {}
        self._multi_frame: list[str] = []
        for source, found in ((domain.train, decoded), (test, tested)):
            folder = source.location.name
            self.skipped |= {f"{folder}/{source.names[i]}": reason for i, reason in found.skipped.items()}
            self._multi_frame += [source.names[i] for i in found.multi_frame]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source.names)

    @property
    def num_found(self) -> int:
        """Number of images that were found: readable or not, to train on or to test on."""
        return len(self) + len(self.test.names) + len(self.skipped)

    def iterations(self, num_epochs: int) -> int:
        """Return the number of batches that show every image at least `num_epochs` times."""
        return math.ceil(num_epochs * len(self) / self.batch_size)

    def describe_data(self) -> dict[str, Any]:
        """Return what data.json records about the images, as plain types."""
        return {
            "folder": str(self.source.location.resolve()),
            "train": dict(zip(self.source.names, self.source.sizes(), strict=True)),
            "test_folder": str(self.test.location.resolve()) if self.test.names else None,
            "test": list(self.test.names),
            "skipped": self.skipped,
        }

    def report(self) -> None:
        """Log which images were loaded, and warnings about them."""
        place = f"in memory, {self.images.nbytes / 1e6:.1f} MB" if self.is_cached else "streamed from disk"
        LOG.info("%d images from %s, %dx%d, %s%s", len(self), self.source.location, self.stored_size,
                 self.stored_size, place, self._note)  # fmt: skip
        if self.test.names:
            LOG.info("%d test images from %s", len(self.test.names), self.test.location)
        if self._num_new:
            LOG.info("Images added since the run began, which are not used: %d", self._num_new)
        for location, left_out in {one.location: one.left_out for one in (self.test, self.source)}.items():
            if left_out:
                LOG.info("Left out in %s: %s", location, left_out)
        if self._scale:
            LOG.info("%s", self._scale.describe())
        if self._is_range_unused:
            LOG.info(
                "--value_range does nothing for %s: no gray image there has more than 8 bits per value",
                self.source.location,
            )
        if self.skipped:
            names = shorten([printable(name) for name in self.skipped])
            LOG.warning("%s: %s", _count_unreadable(len(self.skipped), self.num_found), names)
            for name, reason in self.skipped.items():
                LOG.info("    %s: %s", name, reason)
        if self._multi_frame:
            have = "images have" if len(self._multi_frame) > 1 else "image has"
            names = shorten(self._multi_frame)
            LOG.info("%d %s several frames; the first is used: %s", len(self._multi_frame), have, names)
        if len(self) < self.batch_size:
            LOG.warning(
                "%d images are fewer than the batch size %d, so batches repeat some", len(self), self.batch_size
            )

    def preview(self, count: int) -> Tensor:
        """Return the first `count` augmented images in the order of the run, (count, 3, S, S)."""
        return torch.cat([self.batch(step, whole=True) for step in range(math.ceil(count / self.batch_size))])[:count]

    def preview_images(self, count: int) -> Tensor:
        """Return up to `count` images without augmentation, (n, 3, S, S) in [-1, 1]: test images, if there are any."""
        source = self.test if self.test.names else self.source
        images = decode_some(source, range(min(count, len(source.names))), self.image_size, self.value_range)
        return from_uint8(images).to(self.device)

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of batch `step` (from 0), int64 (B,): a pure function of (seed, stream, step).

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

    def batch(self, step: int, whole: bool = False) -> Tensor:
        """Return the augmented batch of `step` (from 0): float32 (B, 3, S, S) in [-1, 1] on the device.

        With several processes each gets its part of the batch, or all of it if `whole`; the draws are the same.
        """
        self.select(step, whole)
        return self.augmented(whole)

    def select(self, step: int, whole: bool = False) -> None:
        """Select the images of batch `step` for `augmented`, without waiting for the device."""
        if not self.is_cached:
            self._streamed_batch = self._next_streamed(step, whole).to(self.device, non_blocking=True)
            return
        indices = self._indices(step, whole)
        if self.selected is None or len(self.selected) != len(indices):
            self.selected = indices.to(self.device)
        else:  # in place, where a CUDA graph reads them
            self.selected.copy_(indices.pin_memory() if self.device.type == "cuda" else indices, non_blocking=True)

    def augmented(self, whole: bool = False) -> Tensor:
        """Return the selected batch, augmented. Only the selected images depend on the step."""
        uniforms = torch.rand(self.batch_size, self.augmentation.uniforms, device=self.device)
        uniforms = uniforms if whole else local_shard(uniforms)
        stored = self.images[self.selected] if self.is_cached else self._streamed_batch  # uint8 (B, 3, R, R)
        assert stored is not None  # `select` has been called
        return self.augmentation.apply(stored, self.image_size, uniforms)

    def _indices(self, step: int, whole: bool) -> Tensor:
        """Return the indices of batch `step`, or those of this process's part."""
        indices = torch.from_numpy(self.indices(step))
        return indices if whole else local_shard(indices)

    def _decode(self, index: int) -> Decoded:
        return decode(self.source.open(index), self.stored_size, self.value_range)

    def _next_streamed(self, step: int, whole: bool) -> Tensor:
        """Return the stored images of batch `step`, uint8 (B, 3, R, R), while threads decode the batches after it."""
        for ahead in range(step, step + 1 + BATCHES_AHEAD):
            if (ahead, whole) not in self._streamed:
                indices = self._indices(ahead, whole).tolist()
                self._streamed[ahead, whole] = [self._pool.submit(self._decode, index) for index in indices]
        images = []
        for index, decoded in zip(self._indices(step, whole).tolist(), self._streamed[step, whole], strict=True):
            try:
                images.append(decoded.result().pixels)
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise any exception for broken bytes
                name, reason = self.source.names[index], describe_error(error)
                raise UserError(
                    f"{self.source.location / name} has become unreadable ({reason}); restore it and use --resume"
                ) from None
        self._streamed = {key: batch for key, batch in self._streamed.items() if key[0] > step and key[1] == whole}
        batch = torch.stack(images)  # (B, 3, R, R)
        return batch.pin_memory() if self.device.type == "cuda" else batch


def _count_unreadable(bad: int, total: int) -> str:
    return f"{bad} of {total} images {'is' if bad == 1 else 'are'} not readable"


def load_images(
    options: "VanillaOptions | CycleOptions", device: torch.device, recorded: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, ImageBatches]:
    """Find and decode the images of a run, by domain. One process per machine decodes first, for the decode cache.

    Args:
        options: the data options, and checkpoint_dir, in whose folder .cache decoded images are kept.
        recorded: the images that a resumed run began with (see `find_domains`).

    Raises:
        UserError: a folder without images, or without readable ones; with `strict` also one unreadable image.
    """
    data = local_main_first(lambda: _decode_domains(find_domains(options, recorded), options, device))
    skipped = {name: reason for images in data.values() for name, reason in images.skipped.items()}
    if options.strict and skipped:
        total = sum(images.num_found for images in data.values())
        names = shorten([f"{printable(name)} ({reason})" for name, reason in skipped.items()], 3)
        raise UserError(
            f"--strict: {_count_unreadable(len(skipped), total)}: {names}. Fix or remove them, or leave out --strict "
            "to skip them"
        )
    return data


def _decode_domains(
    domains: dict[str, Domain], options: "VanillaOptions | CycleOptions", device: torch.device
) -> dict[str, ImageBatches]:
    return {
        name: ImageBatches(
            domain,
            options.image_size,
            options.data_aug,
            options.batch_size,
            options.seed,
            device,
            options.cache_gb / len(domains),
            options.num_workers,
            stream,
            Path(options.checkpoint_dir) / ".cache",
            value_range,
        )
        for stream, ((name, domain), value_range) in enumerate(
            zip(domains.items(), options.value_ranges(), strict=True)
        )
    }
