"""The page of `qft plan`: the answer first, then three offers and what limits the bill; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from commands.runs.base_description import TableBase
from commands.runs.hub_base import HubAnswer
from commands.runs.planning.answer import CAP_MARGIN, Answer, cheaper_card
from commands.runs.planning.cards import against_one, unused_warning
from commands.runs.planning.figures import dollars, hourly, hours_span
from commands.runs.planning.offers_table import card_lines, offer_lines, price_age_s
from commands.runs.planning.priced_change import Advice
from commands.runs.planning.ranking import JobOffer
from commands.runs.planning.services import ServiceCost
from commands.runs.planning.summary import (
    INDENT,
    job_lines,
    price_fact,
    three_lines,
)
from commands.ui.wrap import WIDTH_WITHOUT_TERMINAL, wrapped
from infra.provider import Safeguard
from infra.run.budget import Budget

MARGIN = "  "
ADVICE_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PlanPage:
    """What a run needs, what it costs in which place, and what limits the bill."""

    run: str
    provider: str
    offers: tuple[JobOffer, ...]
    """In the order in which a run tries them."""
    cards: tuple[JobOffer, ...]
    """The best of each card, by what the job costs there; also of cards that were not named."""
    max_price_usd_per_h: float | None
    budget: Budget
    worst_case_usd: float | None
    """The most that budget and cap allow, whatever happens; None if neither limits it."""
    simulated: bool
    answer: Answer
    advice: tuple[Advice, ...] = ()
    """What would make it fit, or cost less, the least change first."""
    services: tuple[ServiceCost, ...] = ()
    estimate: dict[str, Any] | None = None
    """What `trainer.estimate` estimates; None if the sizes of the model are unknown."""
    unknown: str = ""
    """Why they are, and what to do; empty if they are known, or the card is not."""
    too_long: str = ""
    """What to warn of if rows may be longer than the base's texts."""
    row_warnings: tuple[str, ...] = ()
    """What to warn of in the rows."""
    local_estimate: dict[str, Any] | None = None
    """The same of this computer, where it trains itself; None if that is unknown."""
    here: str = ""
    """What will happen on this computer, in words; empty if a machine is rented."""
    note: str = ""
    """What the catalog says about the name of the GPU."""
    safeguards: tuple[Safeguard, ...] = ()
    """What can be expected to end the bill when everything of ours is dead."""
    lacks: tuple[str, ...] = ()
    """What `qft run` would refuse for, such as packages that this computer lacks, with the fix."""
    own: str = ""
    """The user's own machine, as `user@host:port`; empty if one is rented or played."""
    gpus: int = 1
    """How many cards the run uses."""
    nodes: int = 1
    """How many machines the run has at a time."""
    one_card: JobOffer | None = None
    """The same job on one card of the first offer, which has several; else None."""
    base: HubAnswer | None = None
    """What the hub said of the base; None if it is a directory, or nobody answered."""
    table_base: TableBase | None = None
    """The row of the table of common bases whose sizes stand for the base; None if its own are."""
    offers_at_s: float = 0.0
    """When the offers were asked for, in seconds since 1970: prices are aged by it."""

    @property
    def first(self) -> JobOffer | None:
        """The offer that would be tried first; if none is free, the first that is blocked."""
        free = (one for one in self.offers if one.is_free)
        return next(free, self.offers[0] if self.offers else None)

    @property
    def nodes_text(self) -> str:
        """Say what several machines cost an hour, and what the figures leave out; empty for one."""
        if self.nodes < 2 or self.first is None:
            return ""
        offer = self.first.offer
        price = hourly(self.nodes * offer.running_usd_per_h)
        return (
            f"{self.nodes} machines of {offer.machine} bill {price}/h together, and the budget "
            "counts them all; hours and dollars of the job are those of one machine: what they "
            "share out, and send each other over the network, is not counted"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        first = self.first
        job, cost = (None, None) if first is None else (first.job, first.cost)
        return {
            "run": self.run,
            "provider": self.provider,
            "max_price_usd_per_h": self.max_price_usd_per_h,
            "budget": asdict(self.budget),
            "worst_case_usd": self.worst_case_usd,
            "simulated": self.simulated,
            **({"nodes": self.nodes} if self.nodes > 1 else {}),
            "note": self.note or None,
            "lacks": list(self.lacks),
            "base": self.base.to_json() if self.base else None,
            "table_base": self.table_base.base.id if self.table_base else None,
            "forecast": self.estimate,
            "forecast_problem": self.unknown or None,
            "length_warning": self.too_long or None,
            "row_warnings": list(self.row_warnings),
            "rehearsal": self.local_estimate,
            "switches": [
                {
                    "name": one.name,
                    "holds": one.is_set,
                    "detail": one.detail,
                    "hint": one.hint or None,
                }
                for one in self.safeguards
            ],
            "offers": [
                one.offer.to_json() | {"price_age_s": price_age_s(one.offer, self.offers_at_s)}
                for one in self.offers
            ],
            "job": None if job is None else job.to_json(),
            "costs": None if cost is None else cost.to_json(),
            "ranking": [one.to_json() for one in self.cards],
            "services": [asdict(one) for one in self.services],
            "advice": [one.to_json() for one in self.advice],
            "answer": {"text": self.answer.text, "exit_code": int(self.answer.exit_code)},
        }

    def lines(self, width: int = WIDTH_WITHOUT_TERMINAL, *, all_of_them: bool = False) -> list[str]:
        """Return the lines to print; `all_of_them` shows every offer and every detail."""
        if self.own:
            return self._lines_of_own(width)
        cap = self.max_price_usd_per_h
        head = f"run `{self.run}` on {self.provider}"
        head += f", cap {hourly(cap)}/h" if cap is not None else ", no price cap"
        offers = offer_lines(self.offers, width, all_of_them=all_of_them, now_s=self.offers_at_s)
        return [
            head,
            "",
            *self.summary(width),
            *(_wrap(self._part_lines(), width) if all_of_them else []),
            *_wrap([*self._here_lines(), *self._base_lines()], width),
            "",
            *offers,
            *self._card_lines(width),
            *_wrap(self._service_lines(), width),
            "",
            *_wrap(self._limit_lines(all_of_them=all_of_them), width),
            *_wrap(self._warnings(), width),
            "",
            *_wrap(self.advice_lines(all_of_them=all_of_them), width),
            *([""] if self.advice else []),
            *_wrap([self.answer.text], width),
        ]

    def summary(self, width: int) -> list[str]:
        """Return the three lines on memory, hours and dollars, and of what the dollars are made."""
        first = self.first
        prices = price_fact(first) if first is not None else ""
        compared = against_one(first, self.one_card)
        return [
            *three_lines(first, width, simulated=self.simulated),
            *(wrapped(INDENT + prices, width, indent=INDENT) if prices else []),
            *(wrapped(INDENT + compared, width, indent=INDENT) if compared else []),
        ]

    def advice_lines(self, *, all_of_them: bool = False) -> list[str]:
        """Return what would make the run go ahead, the first ways of it or all."""
        shown = self.advice if all_of_them else self.advice[:ADVICE_SHOWN]
        lines = [f"advice: {one.text}" for one in shown]
        if more := len(self.advice) - len(shown):
            lines.append(f"advice: {more} more with `qft plan --all`")
        return lines

    def _part_lines(self) -> list[str]:
        """Return the parts of the hours, each with the source of its rate."""
        first = self.first
        parts = () if first is None or first.job is None else first.job.parts
        return [
            f"{INDENT}{part.name} {hours_span(part.hours)}"
            + (f": {part.source}" if part.source else ": nobody has measured it for this trainer")
            for part in parts
            if part.hours.high > 0
        ]

    def _here_lines(self) -> list[str]:
        return [self.here] if self.here else []

    def _base_lines(self) -> list[str]:
        return [one.line for one in (self.base, self.table_base) if one is not None]

    def _card_lines(self, width: int) -> list[str]:
        """Return the cards by what the job costs on them, if there is more than one to compare."""
        if len([one for one in self.cards if one.cost is not None]) < 2:
            return []
        lines = ["", "the same job on each card:", *card_lines(self.cards, width)]
        named = {one.offer.gpu for one in self.offers}
        if cheaper := cheaper_card(self.cards, named):
            lines += wrapped(cheaper, width, indent=MARGIN)
        return lines

    def _service_lines(self) -> list[str]:
        if not self.services:
            return []
        costs = ", ".join(f"{one.name} {dollars(one.usd)}" for one in self.services)
        days = sorted({one.seen for one in self.services})
        text = f"as a service, if it has this base: {costs} for the training alone"
        return ["", f"{text} (prices of {' and '.join(days)})"]

    def _limit_lines(self, *, all_of_them: bool) -> list[str]:
        """Return what ends the bill: the budget, then what does it without this computer."""
        most = self.worst_case_usd
        limit = "no limit in dollars: set `budget`" if most is None else f"at most {dollars(most)}"
        played = " (simulated, nobody is charged)" if self.simulated else ""
        lines = [f"budget: {budget_text(self.budget)}; {limit} while `qft` watches{played}"]
        held = [one for one in self.safeguards if one.is_set]
        if held and not all_of_them:
            lines.append(f"will end the bill without it: {', '.join(one.name for one in held)}")
        return [*lines, *_safeguard_lines(self.safeguards, all_of_them=all_of_them)]

    def _warnings(self) -> list[str]:
        """Return what to know before renting: warnings, then how sure the figures are."""
        first = self.first
        cap = _cap_warning(self.offers, self.max_price_usd_per_h)
        notes = first.job.notes if first is not None and first.job is not None else ()
        idle = first.job.idle_cards if first is not None and first.job is not None else ""
        unused = unused_warning(first, self.gpus)
        texts = (cap, unused, idle, self.too_long, *self.row_warnings, *self.lacks)
        return [
            *(f"warning: {text}" for text in texts if text),
            *([f"note: {text}"] if (text := self.nodes_text) else []),
            *([f"note: {self.note}"] if self.note else []),
            *(f"note: {text}" for text in notes),
        ]

    def _lines_of_own(self, width: int) -> list[str]:
        """Return the lines for the user's own machine: no offer, no price, no guessed card."""
        job = self.first.job if self.first is not None else None
        limit = "none: set `budget.hours`"
        if self.budget.hours is not None:
            limit = _counted(self.budget.hours, "machine hour")
        idle = job.idle_cards if job is not None else ""
        warnings = (idle, self.too_long, *self.row_warnings, *self.lacks)
        texts = [
            *self._base_lines(),
            f"limit: {limit}",
            *(f"warning: {text}" for text in warnings if text),
            *self.advice_lines(),
            self.answer.text,
        ]
        return [
            *_wrap(
                [f"run `{self.run}` on your own machine {self.own}, which costs nothing here"],
                width,
            ),
            "",
            *(job_lines(job, width) if job is not None else []),
            *_wrap(texts, width),
        ]


def _wrap(texts: Sequence[str], width: int) -> list[str]:
    return [line for text in texts for line in wrapped(text, width, indent=MARGIN)]


def _safeguard_lines(safeguards: Sequence[Safeguard], *, all_of_them: bool) -> list[str]:
    """Describe the safeguards; whether each will end the bill comes first."""
    lines = []
    for one in safeguards:
        if one.is_set and all_of_them:
            lines.append(f"will end the bill: {one.name}: {one.detail}")
        elif not one.is_set:
            how = f"; to get it: {one.hint}" if one.hint else ""
            lines.append(f"will NOT end the bill: {one.name}: {one.detail}{how}")
    return lines


def _cap_warning(offers: Sequence[JobOffer], cap: float | None) -> str:
    """Warn of a cap so close to the market that the machine will soon be evicted; else empty."""
    first = next((one.offer for one in offers if one.is_free), None)
    if first is None or cap is None or cap >= first.spot_usd_per_h * CAP_MARGIN:
        return ""
    return (
        f"the cap of {hourly(cap)}/h is close to the price of now, ${first.spot_usd_per_h:.4f}/h: "
        "a small rise evicts the machine; a higher cap costs nothing extra while the price stays"
    )


def budget_text(budget: Budget) -> str:
    """Describe the limits of a budget; `none` if it has none."""
    parts = [
        f"${budget.usd:.2f}" if budget.usd is not None else "",
        _counted(budget.hours, "machine hour") if budget.hours is not None else "",
        _counted(budget.evictions, "eviction") if budget.evictions is not None else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


def _counted(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"
