"""Which faces are near copies of each other, and which show the same person: decided by their 128 numbers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def find_near_copies(descriptors: np.ndarray, sizes: Sequence[int], threshold: float) -> dict[int, int]:
    """Return for each face that is a near copy of a larger one the index of that one. Of equal sizes the first counts.

    Args:
        descriptors: float32 (N, 128).
        sizes: of the faces, in pixels.
        threshold: faces with a smaller difference are near copies.
    """
    copies: dict[int, int] = {}
    kept: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        differences = np.linalg.norm(descriptors[kept] - descriptors[index], axis=1)
        if len(kept) and differences.min() < threshold:
            copies[index] = kept[int(differences.argmin())]
        else:
            kept.append(index)
    return copies


def group_persons(descriptors: np.ndarray, threshold: float, before: Sequence[int]) -> list[int]:
    """Return the number of the person whom each face shows, from 1; the person with the most faces is number 1.

    Args:
        descriptors: float32 (N, 128).
        threshold: the largest difference of two faces that are linked; a person is a cluster of linked faces.
        before: the number that each face had in an earlier call, 0: none. A person keeps the number.
    """
    import dlib

    vectors = [dlib.vector(descriptor.astype(float).tolist()) for descriptor in descriptors]
    labels = dlib.chinese_whispers_clustering(vectors, threshold)
    sizes = Counter(labels)
    votes = {label: Counter(old for one, old in zip(labels, before, strict=True) if one == label and old)
             for label in sizes}  # fmt: skip
    numbers: dict[int, int] = {}
    for label in sorted(sizes, key=lambda label: (-votes[label].total(), -sizes[label], label)):
        taken = set(numbers.values())
        old = next((number for number, _ in votes[label].most_common() if number not in taken), None)
        numbers[label] = old or next(n for n in range(1, len(labels) + max(before, default=0) + 2) if n not in taken)
    return [numbers[label] for label in labels]
