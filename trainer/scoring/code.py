"""Scores answers that are code: each is run by its problem's own test program, in a sandbox."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.code_eval.limits import Limits, Outcome
from trainer.code_eval.problems import (
    Problem,
    clean_answer,
    limits_of,
    read_problems,
    test_program,
)
from trainer.code_eval.runner import ProgramRunner, proven_runner
from trainer.data.codec import Example, tokens_sha256
from trainer.data.examples import load_examples
from trainer.data.rows import read_rows
from trainer.errors import ConfigError, NoSandbox
from trainer.eval_tables.code import CodeEvalTable
from trainer.rundir.layout import CONFIG, resolve
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.code_figures import Judged, code_details, pass_share
from trainer.scoring.free_answers import FreeAnswer, answer_freely
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.result import EvalResult, ScoringRequest

METRIC = "pass_at_1"
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
    here. After training, answers are generated before a sandbox is asked for: if none holds, they
    are kept in `request.scratch`, and none is run.

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
    limits = limits_of(table)
    ours = (request.run_dir / CONFIG,)
    try:
        with proven_runner(table.python or sys.executable, ours) as runner:
            answers = generate(request, chosen)
            facts = {"limits": str(limits), "facts": {**runner.facts, "sandbox": runner.mechanism}}
            kept = KeptRows(request.scratch / "verdicts.jsonl", facts)
            judge = _Judge(runner=runner, kept=kept, limits=limits, request=request)
            references = judge.all("reference", chosen.problems, _references(chosen))
            _require_scorable(chosen.problems, references)
            codes = [clean_answer(one.text) for one in answers]
            found = judge.all("answer", chosen.problems, codes)
            empty: list[Outcome] = []
            if request.stage == "before" and table.baselines:
                empty = judge.all("empty", chosen.problems, [""] * len(codes))
            facts_shown = dict(runner.facts)
    except NoSandbox:
        if request.stage == "after":
            generate(request, chosen)
        raise
    judged = [
        Judged(problem=problem, item=item, answer=answer, code=code, reference=right, outcome=given)
        for problem, item, answer, code, right, given in zip(
            chosen.problems, chosen.items, answers, codes, references, found, strict=True
        )
    ]
    details = code_details(judged, empty, facts_shown)
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
        stop_rate=sum(one.stopped for one in answers) / len(answers),
        parse_failures=sum(not code.strip() for code in codes),
        out_of_vocabulary=0,
        seconds=time.monotonic() - begun,
        details=details,
    )


def load_problems(request: ScoringRequest) -> ProblemSet:
    """Load the held-out problems that are scored.

    Raises:
        DataError: the rows cannot be read, or have no test programs.
        ConfigError: the rows are texts without an answer.
    """
    config = request.config
    table = config.scored
    assert isinstance(table, CodeEvalTable)
    assert config.data.eval is not None
    if config.data.text is not None:
        raise ConfigError(["eval.kind: `code` scores answers, and a `data.text` has none"])
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
    facts = {
        "stage": request.stage,
        "tokens": tokens_sha256(chosen.items),
        "tokens_max": chosen.tokens_max,
    }
    return answer_freely(
        request.model,
        request.tokenizer,
        chosen.items,
        tokens_max=chosen.tokens_max,
        kept=KeptRows(request.scratch / "answers.jsonl", facts),
        on_progress=request.on_progress,
    )


def _references(chosen: ProblemSet) -> list[str]:
    return [problem.reference for problem in chosen.problems]


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Runs programs that are not judged yet; each verdict is on the disk before the next begins."""

    runner: ProgramRunner
    kept: KeptRows
    limits: Limits
    request: ScoringRequest

    def all(self, part: str, problems: Sequence[Problem], codes: Sequence[str]) -> list[Outcome]:
        """Return the outcomes of one code for each problem, in order."""
        found = []
        for at, (problem, code) in enumerate(zip(problems, codes, strict=True)):
            found.append(self.one(part, problem, code))
            self.request.on_progress(at + 1, len(problems))
        return found

    def one(self, part: str, problem: Problem, code: str) -> Outcome:
        """Return the outcome of one code, kept or new."""
        program = test_program(problem, code)
        digest = hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
        key = f"{part} {problem.row} {digest[:24]}"
        row = self.kept.get(key)
        if row is None:
            outcome = self.runner.run(program, self.limits)
            row = {
                "verdict": outcome.verdict, "error": outcome.error, "message": outcome.message,
                "seconds": round(outcome.seconds, 3),
            }  # fmt: skip
            self.kept.add({key: row})
        return Outcome(**row)


def _require_scorable(problems: Sequence[Problem], references: Sequence[Outcome]) -> None:
    """Raise `ConfigError` if no problem's own solution passes: then no score means anything."""
    if any(one.verdict == "passed" for one in references):
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
