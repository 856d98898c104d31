"""Runs the programs of a scoring one by one, each verdict kept before the next program begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.code_eval.limits import Outcome
from trainer.code_eval.problems import Problem, program_for
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.group.rounds import share
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
    peers: Peers = ALONE,
) -> list[Outcome]:
    """Return the outcome of one code for each problem, in order.

    Rank 0 alone runs them: the sandbox and the memory for it are those of one machine. The others
    hear of each outcome when it is there.

    What is in `kept` is not run again: after a kill the scoring goes on with the next problem.
    `part` tells the runs of one scoring apart: `reference`, `answer` or `empty`.
    """

    def work(done: int, problem: Problem, code: str) -> Iterator[dict[str, Any]]:
        if peers.rank == 0:
            yield _outcome(problem, part, code, run=run, kept=kept)
        on_progress(done, len(problems))

    found = []
    for done, (problem, code) in enumerate(zip(problems, codes, strict=True), 1):
        [row] = share(peers, work(done, problem, code)).require()
        found.append(Outcome(**row))
    return found


def _outcome(
    problem: Problem, part: str, code: str, *, run: Callable[[str], Outcome], kept: KeptRows
) -> dict[str, Any]:
    """Return what running one program gave, now or when it was kept."""
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
    return row
