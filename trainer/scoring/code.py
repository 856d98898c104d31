"""Scores answers that are code: each is run by its problem's own test program, in a sandbox."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.code_eval.libraries import libraries_in
from trainer.code_eval.limits import PASSED, Outcome
from trainer.code_eval.problems import Problem, clean_answer, limits_of, read_problems
from trainer.code_eval.runner import ProgramRunner, proven_runner
from trainer.data.codec import Example
from trainer.data.examples import load_examples
from trainer.data.rows import read_rows
from trainer.errors import ConfigError, NoSandbox
from trainer.eval_tables.code import CodeEvalTable
from trainer.group.rounds import on_first
from trainer.rundir.layout import CONFIG, resolve
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.code_figures import Judged, code_details, pass_share
from trainer.scoring.code_verdicts import run_programs
from trainer.scoring.free_answers import FreeAnswer, answer_freely
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.result import EvalResult, ScoringRequest

METRIC = "pass_at_1"
ANSWERS = "answers.jsonl"
NAMED_IN = "answers-python"
"""The file above the run's folder in which set-up names the interpreter that it made."""
TOKENS_MIN = 64
MESSAGES_SHOWN_MAX = 5


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """The held-out problems in order, each with the example that asks for its answer."""

    items: tuple[Example, ...]
    problems: tuple[Problem, ...]
    tokens_max: int


def score_code(request: ScoringRequest) -> EvalResult:
    """Let a model answer the held-out problems, run the answers, and count those that pass.

    Each problem's own solution runs first: where that does not pass, the problem cannot be scored
    here. All ranks generate, and rank 0 alone runs programs. After training, answers are generated
    before a sandbox is asked for: if none holds, they are kept in `request.scratch`, and none is
    run.

    Raises:
        DataError: the rows cannot be read, or have no test programs.
        NoSandbox: no sandbox holds on this machine.
        ConfigError: the interpreter cannot be used, or no problem can be scored in it.
        OSError: the sandbox failed meanwhile; what was judged is kept.
    """
    begun = time.monotonic()
    table = request.config.scored
    assert isinstance(table, CodeEvalTable)
    chosen = load_problems(request)
    try:
        judged, details = _judge(request, table, chosen)
    except NoSandbox as error:
        if request.stage == "before":
            raise
        generate(request, chosen)
        kept_in = request.scratch / ANSWERS
        raise NoSandbox([*error.problems, f"the answers are kept in {kept_in}"]) from error
    share = pass_share(judged)
    return EvalResult(
        stage=request.stage,
        kind=table.kind,
        metric=METRIC,
        decoding="free",
        value=share.value,
        low=share.low,
        high=share.high,
        n=details["scorable"],
        stop_rate=sum(one.answer.stopped for one in judged) / len(judged),
        parse_failures=sum(not one.code.strip() for one in judged),
        out_of_vocabulary=0,
        seconds=time.monotonic() - begun,
        details=details,
    )


def _judge(
    request: ScoringRequest, table: CodeEvalTable, chosen: ProblemSet
) -> tuple[list[Judged], dict[str, Any]]:
    """Return the problems with the verdicts on their answers, and the details of the result."""
    problems, limits = chosen.problems, limits_of(table)
    libraries = libraries_in(problem.tests for problem in problems)
    ours = [request.run_dir / CONFIG]
    with ExitStack() as stack:
        runners: list[ProgramRunner] = []  # of rank 0 alone

        def prove() -> dict[str, Any]:
            proven = proven_runner(interpreter_of(request), libraries, ours=ours)
            runners.append(stack.enter_context(proven))
            return dict(runners[0].facts)

        shown = on_first(request.peers, prove)
        answers = generate(request, chosen)
        codes = [clean_answer(one.text) for one in answers]
        facts = {"limits": str(limits), "runner": str(shown)}
        run_all = partial(
            run_programs,
            problems,
            run=lambda program: runners[0].run(program, limits=limits),
            kept=KeptRows(request.scratch / "verdicts.jsonl", facts),
            on_progress=request.on_progress,
            peers=request.peers,
        )
        references = run_all("reference", [one.reference for one in problems])
        _require_scorable(problems, references)
        found = run_all("answer", codes)
        with_empty = request.stage == "before" and table.baselines
        empty = run_all("empty", [""] * len(codes)) if with_empty else []
    judged = [
        Judged(problem=problem, item=item, answer=answer, code=code, reference=right, outcome=given)
        for problem, item, answer, code, right, given in zip(
            problems, chosen.items, answers, codes, references, found, strict=True
        )
    ]
    return judged, code_details(judged, empty, shown)


def interpreter_of(request: ScoringRequest) -> str:
    """Return the interpreter that answers run in.

    The one of `eval.python`, else the environment that set-up made for it on this machine, else
    the trainer's own.
    """
    table = request.config.scored
    assert isinstance(table, CodeEvalTable)
    return table.python or _interpreter_made(request.run_dir) or sys.executable


def _interpreter_made(run_dir: Path) -> str | None:
    """Return the interpreter that the machine's set-up made for answers; None if it made none."""
    try:
        named = (run_dir.parent.parent / NAMED_IN).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return named if Path(named).is_file() else None


def load_problems(request: ScoringRequest) -> ProblemSet:
    """Load the held-out problems that are scored.

    Raises:
        DataError: the rows cannot be read, or have no test programs.
    """
    config = request.config
    table = config.scored
    assert isinstance(table, CodeEvalTable)
    assert config.data.eval is not None
    path = resolve(request.run_dir, config.data.eval)
    loaded = load_examples(
        config.data,
        path,
        request.tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(request.model.config.is_encoder_decoder),
    )
    last = {item.row: item for item in loaded.items}
    items = choose_rows(tuple(last.values()), table.rows)
    references = {item.row: clean_answer(item.completion) for item in items}
    problems = read_problems(read_rows(path), references, table, place=config.data.eval)
    longest = max(item.answer_length for item in items)
    return ProblemSet(
        items=items,
        problems=tuple(problems),
        tokens_max=table.tokens_max or max(TOKENS_MIN, 2 * longest),
    )


def generate(request: ScoringRequest, chosen: ProblemSet) -> list[FreeAnswer]:
    """Return the model's answers; those that an interrupted scoring kept are not made again."""
    return answer_freely(
        request.model,
        request.tokenizer,
        chosen.items,
        tokens_max=chosen.tokens_max,
        kept=request.keep("answers", chosen.items, tokens_max=chosen.tokens_max),
        on_progress=request.on_progress,
        peers=request.peers,
    )


def _require_scorable(problems: Sequence[Problem], references: Sequence[Outcome]) -> None:
    """Raise `ConfigError` if no problem's own solution passes: then no score means anything."""
    if any(one.verdict == PASSED for one in references):
        return
    reasons = [
        f"row {problem.row} ({problem.library}): {one.verdict} {one.error} {one.message}".rstrip()
        for problem, one in zip(problems, references, strict=True)
    ]
    raise ConfigError(
        [
            (
                "eval.python: no problem's own solution passes in this interpreter, so none can be "
                "scored; name one that has the libraries"
            ),
            *reasons[:MESSAGES_SHOWN_MAX],
        ]
    )
