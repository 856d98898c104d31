"""Runs the programs of a scoring one by one, each verdict kept before the next program begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from trainer.code_eval.limits import Outcome
from trainer.code_eval.problems import Problem, program_for
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.predict import OnProgress


def run_programs(  # noqa: PLR0913 - what is run, how, and where it is kept
    problems: Sequence[Problem],
    part: str,
    codes: Sequence[str],
    *,
    run: Callable[[str], Outcome],
    kept: KeptRows,
    on_progress: OnProgress,
) -> list[Outcome]:
    """Return the outcome of one code for each problem, in order.

    What is in `kept` is not run again: after a kill the scoring goes on with the next problem.
    `part` tells the runs of one scoring apart: `reference`, `answer` or `empty`.
    """
    found = []
    for at, (problem, code) in enumerate(zip(problems, codes, strict=True)):
        program = program_for(problem, code)
        digest = hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
        key = f"{part} {problem.row} {digest[:24]}"
        row = kept.get(key)
        if row is None:
            outcome = run(program)
            row = {
                "verdict": outcome.verdict, "error": outcome.error, "message": outcome.message,
                "seconds": round(outcome.seconds, 3),
            }  # fmt: skip
            kept.add({key: row})
        found.append(Outcome(**row))
        on_progress(at + 1, len(problems))
    return found
