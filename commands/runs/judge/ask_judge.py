"""Asks a judge for what is not judged yet, row by row, until all is or the budget is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from commands.runs.judge.endpoint import Endpoint, RequestRefusedError
from commands.runs.judge.figures import ComparedPair
from commands.runs.judge.kept_verdicts import (
    REASON_CHARS_MAX,
    KeptVerdict,
    KeptVerdicts,
    verdict_key,
)
from commands.runs.judge.pairs import TABLES, JudgedRow
from commands.runs.judge.prompts import messages
from commands.runs.judge.tokens import Usage, estimate_request
from commands.runs.judge.verdicts import read_choice
from commands.runs.judge_table import JudgeTable
from commands.ui.errors import UsageError

REFUSED_MAX = 3
"""Requests that are refused before the first verdict: then it is not their rows' fault."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """Two answers in one order, and the key of the verdict."""

    key: str
    row: int
    prompt: str
    first: str
    second: str


@dataclass(kw_only=True)
class AskingOutcome:
    """How far the asking came: whether the budget ended it, and what was refused."""

    budget_reached: bool = False
    refused: dict[str, str] = field(default_factory=dict)


def is_identical(row: JudgedRow, name: str) -> bool:
    """Return whether both answers are the same, which needs no judge."""
    first, second = row.answers(name)
    return first.strip() == second.strip()


def both_orders(row: JudgedRow, name: str, judge: JudgeTable) -> tuple[JudgeRequest, JudgeRequest]:
    """Return the two requests of a pair: the tuned answer second, then first."""
    one, tuned = row.answers(name)
    orders = [
        JudgeRequest(
            key=verdict_key(judge.model, judge.criteria, row.prompt, first, second),
            row=row.row,
            prompt=row.prompt,
            first=first,
            second=second,
        )
        for first, second in ((one, tuned), (tuned, one))
    ]
    return orders[0], orders[1]


def requests(rows: Sequence[JudgedRow], judge: JudgeTable) -> Iterator[JudgeRequest]:
    """Yield all requests: a row with both tables and both orders, then the next row."""
    for row in rows:
        for name in TABLES:
            if not is_identical(row, name):
                yield from both_orders(row, name, judge)


def pending_requests(
    rows: Sequence[JudgedRow], judge: JudgeTable, kept: KeptVerdicts
) -> list[JudgeRequest]:
    """Return the requests whose verdicts are not kept, each once."""
    found = {one.key: one for one in requests(rows, judge) if kept.get(one.key) is None}
    return list(found.values())


def estimate(rows: Sequence[JudgedRow], judge: JudgeTable, kept: KeptVerdicts) -> Usage:
    """Return about what is still to be asked will use."""
    total = Usage()
    for one in pending_requests(rows, judge, kept):
        total += estimate_request(_messages(one, judge, "0" * 16))
    return total


def ask_all(  # noqa: PLR0913 - what is asked, of whom, and what it depends on
    rows: Sequence[JudgedRow],
    judge: JudgeTable,
    kept: KeptVerdicts,
    endpoint: Endpoint,
    *,
    new_marker: Callable[[], str],
    on_progress: Callable[[int, int], None],
) -> AskingOutcome:
    """Ask for every verdict that is not kept; each is kept before the next is asked for.

    Stops before a request that would go beyond the budget. A request that the service refuses is
    left out. Raises what `Endpoint.ask` raises.
    """
    outcome = AskingOutcome()
    pending = pending_requests(rows, judge, kept)
    for done, one in enumerate(pending):
        on_progress(done, len(pending))
        written = _messages(one, judge, new_marker())
        if _beyond_budget(kept.usage + estimate_request(written), judge):
            outcome.budget_reached = True
            break
        try:
            reply = endpoint.ask(written)
        except RequestRefusedError as error:
            outcome.refused[one.key] = str(error)
            if len(outcome.refused) >= REFUSED_MAX and not kept.usage.requests:
                raise UsageError(
                    f"the judge at {judge.url} refuses every request: {error}",
                    hint="check `judge.model` and what the service takes",
                ) from error
            continue
        reason = " ".join(reply.content.split())[-REASON_CHARS_MAX:]
        kept.add(
            one.key,
            KeptVerdict(choice=read_choice(reply.content), reason=reason, usage=reply.usage),
        )
    else:
        on_progress(len(pending), len(pending))
    return outcome


def compared_pairs(
    rows: Sequence[JudgedRow], name: str, judge: JudgeTable, kept: KeptVerdicts
) -> dict[int, ComparedPair]:
    """Return the pairs of a table that are judged in both orders, by their place in `rows`."""
    found = {}
    for at, row in enumerate(rows):
        verdicts = [kept.get(one.key) for one in both_orders(row, name, judge)]
        choices = None
        if not is_identical(row, name):
            if verdicts[0] is None or verdicts[1] is None:
                continue
            choices = (verdicts[0].choice, verdicts[1].choice)
        first, tuned = row.answers(name)
        found[at] = ComparedPair(
            row=row.row, first_chars=len(first), tuned_chars=len(tuned), choices=choices
        )
    return found


def _messages(one: JudgeRequest, judge: JudgeTable, marker: str) -> list[dict[str, str]]:
    return messages(one.prompt, one.first, one.second, criteria=judge.criteria, marker=marker)


def _beyond_budget(usage: Usage, judge: JudgeTable) -> bool:
    usd = usage.usd(judge.usd_per_mtok)
    return judge.budget_usd is not None and usd is not None and usd > judge.budget_usd
