"""chrF and BLEU of a corpus, as sacrebleu computes them: from sums over its answers.

sacrebleu counts the n-grams of one answer in a method with a private name, so its minor version is
pinned, and tests hold the figures equal to those of its public `corpus_score`. The score of a
corpus is not the mean of those of its sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trainer.scoring.measures.measure import AnswerScore, Figure, Floats
from trainer.scoring.measures.words import bounded, has_no_spaces

PERCENT = 100.0
RECALL_WEIGHT = 4
"""Beta squared of chrF's F score."""


@dataclass(frozen=True)
class CorpusMeasure:
    """A measure of sacrebleu's; `make` loads the library, and is called once a text is compared."""

    name: str
    value: Callable[[Floats], Floats]
    sentence: Callable[[Floats], Floats]
    make: Callable[[], Any]

    @cached_property
    def _metric(self) -> Any:
        return self.make()

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The score of the corpus, 0 to 100."""
        return {self.name: Figure(value=self.value, maximum=PERCENT)}

    @property
    def about(self) -> Mapping[str, Any]:
        """The signature, with which others can compute the same figure."""
        self._metric.num_refs = 1  # which sacrebleu only knows once it has read a corpus
        return {"signature": str(self._metric.get_signature())}

    def compare(self, answer: str, reference: str) -> AnswerScore:
        """Count the n-grams of one answer."""
        (found, right), notes = bounded(answer, reference)
        counts = self._metric._extract_corpus_statistics([found], [[right]])[0]  # noqa: SLF001
        alone = float(self.sentence(np.array(counts, dtype=float)))
        return AnswerScore(
            score=min(1.0, alone / PERCENT), statistics=tuple(map(float, counts)), notes=notes
        )


def chrf() -> CorpusMeasure:
    """Return the measure `chrf`: character n-grams up to 6, which need no words."""

    def make() -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF()

    return CorpusMeasure("chrf", chrf_score, chrf_score, make)


def chrf_score(sums: Floats) -> Floats:
    """Return chrF, 0 to 100, of the counts [..., 18] of n-grams: answer, reference, both, by order.

    Precision and recall are means over the orders that both texts have (M. Popovic, 2015, and
    sacrebleu's `eff:yes`). Written out here, since a bootstrap takes it a thousand times.
    """
    answer, reference, both = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    there = (answer > 0) & (reference > 0)
    orders = np.maximum(there.sum(-1), 1)
    precision = np.divide(both, answer, out=np.zeros_like(both), where=there).sum(-1) / orders
    recall = np.divide(both, reference, out=np.zeros_like(both), where=there).sum(-1) / orders
    below = RECALL_WEIGHT * precision + recall
    out: Floats = np.zeros_like(below)
    np.divide((1 + RECALL_WEIGHT) * precision * recall, below, out=out, where=below > 0)
    return PERCENT * out


def bleu(references: Sequence[str]) -> CorpusMeasure:
    """Return the measure `bleu`, with the tokenizer that the right answers call for.

    `13a` is the usual one, and splits at spaces; `zh` splits Chinese, `char` all other scripts
    without spaces. The signature names it.
    """

    def make() -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize=bleu_tokenizer(references))

    return CorpusMeasure("bleu", _bleu_scores, _sentence_bleu_scores, make)


def _bleu_scores(sums: Floats) -> Floats:
    return _bleu(sums, effective_order=False)


def _sentence_bleu_scores(sums: Floats) -> Floats:
    return _bleu(sums, effective_order=True)


def _bleu(sums: Floats, *, effective_order: bool) -> Floats:
    """Return BLEU of counts [..., 10]: both lengths, right n-grams and all of the answer's."""
    from sacrebleu.metrics.bleu import BLEU

    scores = []
    for row in sums.reshape(-1, sums.shape[-1]).astype(int).tolist():
        lengths, orders = row[:2], (len(row) - 2) // 2
        scores.append(
            BLEU.compute_bleu(
                row[2 : 2 + orders], row[2 + orders :], lengths[0], lengths[1],
                smooth_method="exp", effective_order=effective_order,
            ).score
        )  # fmt: skip
    return np.array(scores).reshape(sums.shape[:-1])


def bleu_tokenizer(references: Sequence[str]) -> str:
    """Return the name of sacrebleu's tokenizer for the script that most right answers have."""
    without = [text for text in references if has_no_spaces(text)]
    if 2 * len(without) <= len(references):
        return "13a"
    han = [text for text in without if any("\u4e00" <= one <= "\u9fff" for one in text)]
    kana = [text for text in without if any("\u3040" <= one <= "\u30ff" for one in text)]
    return "zh" if 2 * len(han) > len(without) and 2 * len(kana) <= len(without) else "char"
