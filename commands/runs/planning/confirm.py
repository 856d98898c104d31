"""Shows what a run will cost before it rents, and asks once whether to go ahead."""

from __future__ import annotations

from collections.abc import Callable

from commands.runs.base_description import described
from commands.runs.config import check_data_and_model
from commands.runs.hub_base import inspect_base
from commands.runs.planning.make_page import plan_of
from commands.runs.planning.page import PlanPage
from commands.runs.planning.ranking import JobOffer
from commands.runs.request import RunRequest
from commands.ui.ask import ask_yes
from commands.ui.errors import CloudError, StoppedError
from commands.ui.wrap import output_width, wrapped
from infra.provider import ignore_message
from infra.run.journal import Kind, read
from infra.run.plan import Goal

TIME_CELLS = 9
"""What a plain line begins with: the time of day and a space."""
PROMPT = "rent it and go ahead?"


def confirm_renting(
    request: RunRequest, *, ask: Callable[[str], bool] = ask_yes
) -> JobOffer | None:
    """Show the plan of a run that begins on a cloud that bills; ask if the request says so.

    Return the offer that was shown as the first, None if none was. Silent for a run that has begun
    before, and where nothing is charged. A plan that cannot be made is a warning. Raises
    StoppedError if the answer is no; nothing was rented or written then.
    """
    if not _rents_now(request):
        return None
    show, first = request.console.log, None
    try:
        page = _plan(request)
        first = page.first
        for line in confirmation(page, output_width() - TIME_CELLS):
            show(line)
    except CloudError as error:
        show(f"warning: what this will cost cannot be said now: {error.message}")
    if not request.ask:
        return first
    try:
        agreed = ask(PROMPT)
    except KeyboardInterrupt:
        show("\nnothing was rented")
        raise
    if not agreed:
        raise StoppedError(
            "nothing was rented: the answer was no",
            hint="`qft plan --all` shows all offers; `--yes` goes ahead without asking",
        )
    return first


def confirmation(page: PlanPage, width: int) -> list[str]:
    """Return what is to be known before renting: the three lines, the machine, what is amiss."""
    lines = page.summary(width)
    first = page.first
    if first is not None and first.is_free:
        place = f"{first.offer.size} in {first.offer.place}"
        lines += wrapped(f"machine  {place}, the first of {len(page.offers)} offers", width)
    if text := page.nodes_text:
        lines += wrapped(f"note: {text}", width, indent="  ")
    if not page.answer.goes_ahead:
        texts = [*page.advice_lines(), f"warning: {page.answer.obstacle}"]
        lines += [line for text in texts for line in wrapped(text, width, indent="  ")]
    return lines


def _rents_now(request: RunRequest) -> bool:
    """Return whether the run begins now, with a machine that somebody is charged for."""
    loaded = request.loaded
    if request.goal is Goal.FETCH or loaded.simulated or loaded.own_machine:
        return False
    events = [] if request.fresh else read(request.folder.journal)
    return all(event.kind is not Kind.RUN_STARTED for event in events)


def _plan(request: RunRequest) -> PlanPage:
    check_data_and_model(request.loaded)
    if described(request.loaded) is None:  # on a hub, and never asked for
        inspect_base(request.loaded, ignore_message)
    return plan_of(request.loaded, request.home)
