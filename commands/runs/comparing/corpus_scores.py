"""chrF and BLEU from the sums that a score keeps of each row, without any library.

They are sacrebleu's, whose n-grams the sums count; the trainer computes them with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PERCENT = 100.0
CHRF_SUMS, BLEU_SUMS = 18, 10
BETA_SQUARED = 4
NO_LOG = -9999999999.0
"""What sacrebleu takes for the logarithm of 0."""


def chrf(sums: Sequence[float]) -> float:
    """Return chrF, 0 to 100, of n-grams by order: the answer's, the right one's, those of both."""
    orders = [sums[at : at + 3] for at in range(0, CHRF_SUMS, 3)]
    there = [(answer, right, both) for answer, right, both in orders if answer > 0 and right > 0]
    if not there:
        return 0.0
    precision = sum(both / answer for answer, _, both in there) / len(there)
    recall = sum(both / right for _, right, both in there) / len(there)
    below = BETA_SQUARED * precision + recall
    return PERCENT * (1 + BETA_SQUARED) * precision * recall / below if below else 0.0


def bleu(sums: Sequence[float]) -> float:
    """Return BLEU, 0 to 100, with exponential smoothing.

    The sums are both lengths in words, then by order the right n-grams and all of the answer's.
    """
    length, right_length = sums[0], sums[1]
    right, total = sums[2:6], sums[6:BLEU_SUMS]
    if not any(right) or not length:
        return 0.0
    logs, smooth = [NO_LOG] * len(right), 1.0
    for at, (hits, count) in enumerate(zip(right, total, strict=True)):
        if not count:
            break
        if not hits:
            smooth *= 2
        logs[at] = math.log(PERCENT * hits / count if hits else PERCENT / (smooth * count))
    brevity = math.exp(1 - right_length / length) if length < right_length else 1.0
    return brevity * math.exp(sum(logs) / len(logs))
