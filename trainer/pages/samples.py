"""Shows how the answers to a few held-out rows changed while a model was trained, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from trainer.pages import html
from trainer.rundir.samples import SAMPLES, SampleLog, read_samples

STEPS_SHOWN_MAX = 6
"""Of very many samplings, so many are on the page: the first, the last, and some between."""
SHOWN_MAX = 600
"""Characters of a prompt or an answer on the page."""
SUMMARY_MAX = 100
"""Characters of a right answer in the line that is seen while the rest is folded."""
BYTES_MAX = 300_000
"""Of all samples on the page; rows beyond are only in the file."""


def samples_parts(run_dir: Path) -> list[Markup]:
    """Return the parts of the section on samples; none for a run without any."""
    log = read_samples(run_dir / SAMPLES)
    if not log.answers or not log.rows:
        return []
    steps = shown_steps([*log.answers])
    cards = [_card(log, at, steps) for at in range(len(log.rows))]
    while len(cards) > 1 and sum(map(len, cards)) > BYTES_MAX:
        cards.pop()
    made: Markup = html.macros("samples.html").samples(cards, _note(log, steps, shown=len(cards)))
    return [made]


def shown_steps(steps: Sequence[int]) -> list[int]:
    """Return the steps that are shown: all of a few, else the first, the last and some between."""
    if len(steps) <= STEPS_SHOWN_MAX:
        return [*steps]
    last = len(steps) - 1
    places = [round(at * last / (STEPS_SHOWN_MAX - 1)) for at in range(STEPS_SHOWN_MAX)]
    return [steps[place] for place in places]


def _note(log: SampleLog, steps: Sequence[int], *, shown: int) -> str:
    """Say what is seen, and what is only in the file."""
    words = (
        f"The same {len(log.rows)} held-out rows, answered greedily {len(log.answers)} times while "
        "the model was trained."
    )
    left_out = []
    if len(steps) < len(log.answers):
        left_out.append(f"{len(log.answers) - len(steps)} more times")
    if shown < len(log.rows):
        left_out.append(f"{len(log.rows) - shown} more rows")
    return f"{words} In {SAMPLES} are {' and '.join(left_out)}." if left_out else words


def _card(log: SampleLog, at: int, steps: Sequence[int]) -> Markup:
    """Return one row: its prompt, its right answer, and what was answered after which steps."""
    row, answers = log.rows[at], [log.answers[step][at] for step in steps]
    same = [False, *(one == other for one, other in pairwise(answers))]
    cells = [
        {
            "step": step,
            "text": _cut(answer.text),
            "stopped": answer.stopped,
            "right": answer.text.strip() == row.right.strip(),
            "same": unchanged,
        }
        for step, answer, unchanged in zip(steps, answers, same, strict=True)
    ]
    summary = _cut(" ".join(row.right.split()), most=SUMMARY_MAX)
    made: Markup = html.macros("samples.html").card(
        row.row, summary, _cut(row.prompt), _cut(row.right), cells, at == 0
    )
    return made


def _cut(text: str, most: int = SHOWN_MAX) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
