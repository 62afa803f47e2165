"""The variety of generated images in one line, for users who do not know the metrics."""

from collections.abc import Sequence
from typing import Any

from metrics.distances import expected_coverage

LEVELS = ("very low", "low", "medium", "high")
# Coverage, divided by the mean coverage of real images: from these values on the level is low, medium, high.
MIN_COVERAGE = (0.1, 0.5, 0.85)
# SSIM between generated images: 0 as between real images, 1 for equal images. Above these values the level is at most
# very low, low, medium.
MAX_SIMILARITY = (0.75, 0.3, 0.08)
MIN_RECALL = 0.1  # below it the level is at most medium: samples near real images, but little between them
MIN_PRECISION = 0.1  # below it the line says that the images are unlike real ones: they then cover few


def describe_variety(rows: Sequence[dict[str, Any]], what: str) -> str:
    """Return how varied generated images are in comparison with real images: a level in words, and the reasons.

    Args:
        rows: the metrics of one comparison, as `Evaluator` returns them.
        what: the generated images in words, such as "samples".

    The result is "" if coverage, precision, recall or SSIM has no value.
    """
    values = {row["metric"]: row["value"] for row in rows}
    names = ("coverage", "precision", "recall", "SSIM between images", "SSIM between real images")
    if not values.keys() >= set(names):
        return ""
    coverage, precision, recall, ssim, real_ssim = (values[name] for name in names)
    full = expected_coverage(rows[0]["generated"], rows[0]["reference"])
    similarity = (ssim - real_ssim) / max(1 - real_ssim, 1e-6)  # real images that are all the same: 0

    by_coverage = sum(coverage / full >= bound for bound in MIN_COVERAGE)
    by_similarity = sum(similarity <= bound for bound in MAX_SIMILARITY)
    by_recall = len(MIN_COVERAGE) - (recall < MIN_RECALL)
    level = LEVELS[min(by_coverage, by_similarity, by_recall)]

    reasons = [(by_coverage, f"they cover {coverage:.0%} of the real images (new real images would cover {full:.0%})")]
    if precision < MIN_PRECISION:
        reasons.insert(0, (by_coverage, f"{precision:.0%} of them are like real images (precision)"))
    if recall < MIN_RECALL:
        reasons.append((by_recall, f"{recall:.0%} of the real images look like one of them (recall)"))
    if similarity > MAX_SIMILARITY[-1]:
        compared = "resemble each other more than real images do"
    elif similarity < -MAX_SIMILARITY[-1]:
        compared = "differ from each other more than real images do"
    else:
        compared = "differ from each other as much as real images do"
    reasons.append((by_similarity, f"they {compared} (SSIM {ssim:.2f}, real {real_ssim:.2f})"))
    reasons.sort(key=lambda reason: reason[0])  # first the reason for the level
    return "; ".join([f"variety of the {what}: {level}", *(words for _, words in reasons)])
