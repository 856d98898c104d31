"""Judges a run at home: says what it will cost, asks once, and puts the result by the adapter."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commands.runs.comparing.scored_run import read_scores
from commands.runs.config import LoadedConfig, load
from commands.runs.fetched_run import open_fetched
from commands.runs.judge.ask_judge import ask_all, estimate
from commands.runs.judge.endpoint import Endpoint
from commands.runs.judge.kept_verdicts import FILE as VERDICTS
from commands.runs.judge.kept_verdicts import KeptVerdicts
from commands.runs.judge.pairs import JudgedRow, choose_pairs, judged_rows
from commands.runs.judge.result import FILE, make_result
from commands.runs.judge.tokens import Usage
from commands.runs.judge_table import JudgeTable
from commands.ui.ask import ask_yes, can_ask
from commands.ui.errors import BudgetError, StoppedError, UsageError
from infra.durable import LockTimeout, locked, write_json
from trainer.secret import Secret

EXAMPLE = "judge: {url: https://api.example.com/v1, model: NAME, key_env: JUDGE_KEY}"
PROGRESS_EVERY = 20
"""Requests between two messages."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What the command was given, and what it works with."""

    yes: bool
    environment: Mapping[str, str]
    on_message: Callable[[str], None]
    may_ask: Callable[[], bool] = can_ask
    ask: Callable[[str], bool] = ask_yes
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def judge_run(wanted: str, options: JudgeOptions) -> dict[str, Any]:
    """Judge the answers of a fetched run, write `judge.json`, and return what is in it.

    Raises:
        UsageError: there is no judge, no key, or nothing to compare.
        StoppedError: the answer to the question was no; nothing was sent.
        HostError: the service does not answer; what was judged is kept.
    """
    folder, loaded = open_fetched(wanted)
    judge = judge_table(loaded)
    rows = choose_pairs(_rows(loaded, folder.name), judge.rows)
    key = read_key(judge, options.environment)
    endpoint = Endpoint(
        url=judge.url,
        model=judge.model,
        key=key,
        loopback=judge.loopback,
        clock=options.clock,
        wall=time.time,
        sleep=options.sleep,
        on_message=options.on_message,
    )
    try:
        with locked(loaded.out / ".judge.lock", timeout_s=1.0):
            kept = KeptVerdicts(loaded.out / VERDICTS)
            _agree(judge, rows, kept, options)
            outcome = ask_all(
                rows, judge, kept, endpoint,
                new_marker=lambda: f"[{secrets.token_hex(8)}]",
                on_progress=_progress(options.on_message),
            )  # fmt: skip
    except LockTimeout as error:
        raise UsageError(
            f"another `qft eval --judge` is at work on `{folder.name}`", hint="wait for its end"
        ) from error
    result = make_result(folder.name, rows, judge, kept, outcome)
    write_json(loaded.out / FILE, result, mode=0o644)
    return result


def judge_table(loaded: LoadedConfig) -> JudgeTable:
    """Return the table `judge` of the run.yaml as it stands now, or of the one the run began with.

    Raises:
        UsageError: there is none, or the file has faults.
    """
    judge = loaded.config.judge
    if loaded.path.is_file():
        now = load(loaded.path).config
        judge = now.judge if now.name == loaded.config.name else judge
    if judge is None:
        raise UsageError(
            f"`{loaded.path.name}` of `{loaded.config.name}` has no table `judge`",
            hint=f"add one, such as `{EXAMPLE}`; docs/evaluation.md has all keys",
        )
    return judge


def read_key(judge: JudgeTable, environment: Mapping[str, str]) -> Secret | None:
    """Return the key from the environment; raises UsageError if it is not there or is no key."""
    if judge.key_env is None:
        return None
    value = environment.get(judge.key_env, "").strip()
    if not value:
        raise UsageError(
            f"`judge.key_env` names {judge.key_env}, and the environment has no such variable",
            hint=f"`export {judge.key_env}=...` in the shell that runs this command",
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise UsageError(
            f"what {judge.key_env} holds is no key: it has spaces or other characters",
            hint=f"`export {judge.key_env}=...` with the key alone",
        )
    return Secret(value)


def budget_error(result: Mapping[str, Any], judged: str) -> BudgetError | None:
    """Return the error of a result that the budget ended; None for a whole one."""
    if not result["budget_reached"]:
        return None
    return BudgetError(
        "`judge.budget_usd` is reached before all rows were judged",
        hint=f"raise it in run.yaml; `qft eval {judged} --judge` then goes on with the rest",
    )


def cost_line(judge: JudgeTable, rows: int, usage: Usage, spent: Usage) -> str:
    """Return what judging will cost, as it is told before anything is sent."""
    usd, before = (one.usd(judge.usd_per_mtok) for one in (usage, spent))
    line = (
        f"judge: {judge.model} at {judge.url}; {rows} rows, {usage.requests} requests, about "
        f"{usage.prompt:,} tokens to it and {usage.answer:,} from it"
    )
    if usd is None or before is None:
        return f"{line}; no prices in `judge.usd_per_mtok`" if not judge.free else line
    budget = "" if judge.budget_usd is None else f", budget ${judge.budget_usd:.2f}"
    return f"{line}: about ${usd:.4f} (${before:.4f} spent so far{budget})"


def _rows(loaded: LoadedConfig, name: str) -> list[JudgedRow]:
    """Return the rows with answers of both models; raises UsageError if there is none."""
    scores = [read_scores(loaded.out / f"eval-{stage}.json", name) for stage in ("before", "after")]
    rows = judged_rows(*scores)
    if not rows:
        raise UsageError(
            f"the scores of `{name}` hold no answers in words that both models gave",
            hint="a judge compares answers: score with `eval: {kind: text}` or `{kind: chat}`",
        )
    return rows


def _agree(
    judge: JudgeTable, rows: Sequence[JudgedRow], kept: KeptVerdicts, options: JudgeOptions
) -> None:
    """Say what is still to be paid, and ask where somebody can answer.

    Where nobody can, or with `--yes`, a budget has to stand in run.yaml, unless nobody is charged.
    """
    usage = estimate(rows, judge, kept)
    if not usage.requests:
        options.on_message(f"judge: all of the {len(rows)} rows are judged already")
        return
    options.on_message(cost_line(judge, len(rows), usage, kept.usage))
    if judge.free:
        return
    if options.yes or not options.may_ask():
        if judge.budget_usd is None:
            raise UsageError(
                "nobody is asked, and run.yaml has no `judge.budget_usd`; nothing was sent",
                hint="add `budget_usd: 1.00` and `usd_per_mtok: {in: …, out: …}` to `judge`",
            )
        return
    if not options.ask("send these answers to it?"):
        raise StoppedError(
            "nothing was sent: the answer was no", hint="`--yes` goes ahead without asking"
        )


def _progress(on_message: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return a function that says now and then how many requests are done."""

    def report(done: int, total: int) -> None:
        if done and (done % PROGRESS_EVERY == 0 or done == total):
            on_message(f"judged {done} of {total}")

    return report
