"""Lays out offers as a table that fits the width: what matters least is left out first; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commands.runs.planning.figures import dollars, hours
from commands.runs.planning.ranking import GUESSED, JobOffer
from commands.ui.wrap import cells, padded, wrapped
from infra.offer import Offer
from infra.renting.eviction_rate import HOUR
from infra.timestamps import parse_utc_s

SHOWN = 3
"""Offers on the page without `--all`."""
GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; of those that do not fit, the one with the highest `rank` goes first."""

    head: str
    cell: Callable[[JobOffer], str]
    rank: int = 0
    right: bool = False


def _cards(one: JobOffer) -> str:
    return one.offer.cards or one.offer.gpu


def _usd(one: JobOffer) -> str:
    return "" if one.cost is None else dollars(one.cost.total.likely)


def _hours(one: JobOffer) -> str:
    return "" if one.job is None or one.job.hours is None else hours(one.job.hours.likely)


def _card_note(one: JobOffer) -> str:
    if one.too_small:
        return "does not fit"
    fits = "fits" if one.job is not None and one.job.fits else "may fit"
    if one.too_dear:
        return f"{fits}, above the cap"
    return f"{fits}, not to be had now" if one.offer.blocked_by else fits


def _per_h(price: float | None) -> str:
    return "" if price is None else f"{price:.3f}"


def _evicted(offer: Offer) -> str:
    unit = "h" if offer.eviction_period == HOUR else offer.eviction_period
    return f"{offer.eviction_band} %/{unit}" if offer.eviction_band else ""


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _score(offer: Offer) -> str:
    """Return the vendor's guess of being granted the machine, if it is one."""
    return offer.placement_score if offer.placement_score in {"High", "Medium", "Low"} else ""


OFFER_COLUMNS = (
    Column(head="size", cell=lambda one: one.offer.size),
    Column(head="place", cell=lambda one: one.offer.place),
    Column(head="card", cell=_cards, rank=3),
    Column(head="$/h", cell=lambda one: f"{one.offer.spot_usd_per_h:.4f}", right=True),
    Column(head="job", cell=_usd, rank=1, right=True),
    Column(
        head="on demand",
        cell=lambda one: _per_h(one.offer.on_demand_usd_per_h),
        rank=5,
        right=True,
    ),
    Column(head="evicted", cell=lambda one: _evicted(one.offer), rank=2, right=True),
    Column(head="quota for", cell=lambda one: _count(one.offer.quota_left), rank=4, right=True),
    Column(head="granted", cell=lambda one: _score(one.offer), rank=6),
)
CARD_COLUMNS = (
    Column(head="card", cell=_cards),
    Column(head="hours", cell=_hours, right=True),
    Column(head="job", cell=_usd, right=True),
    Column(head="$/h", cell=lambda one: f"{one.offer.spot_usd_per_h:.4f}", right=True),
    Column(head="price of", cell=lambda one: one.offer.priced_at[:10]),
    Column(head="", cell=_card_note),
)


def offer_lines(
    offers: Sequence[JobOffer], width: int, *, all_of_them: bool, now_s: float
) -> list[str]:
    """Return the table of offers, its prices' dates, and how many there are.

    Blocked ones have their reason below; of free ones that are not shown, only the count.
    """
    if not offers:
        return ["no offer"]
    shown = list(offers if all_of_them else offers[:SHOWN])
    table = table_lines(shown, OFFER_COLUMNS, width, numbered=True)
    lines = [table[0]]
    for one, line in zip(shown, table[1:], strict=True):
        reason = one.offer.blocked_by or one.too_small
        if not all_of_them:
            reason = reason.partition("; ")[0]  # the rest is what to do about it
        lines += [line, *(wrapped(f"    {reason}", width, indent="    ") if reason else [])]
    rest = "" if len(shown) == len(offers) else "; `qft plan --all` shows the others"
    lines += wrapped(f"{len(shown)} of {len(offers)}, in the order they are tried{rest}", width)
    for text in dict.fromkeys(price_line(one.offer, now_s) for one in shown):
        lines += wrapped(text, width, indent="  ") if text else []
    return lines


def card_lines(cards: Sequence[JobOffer], width: int) -> list[str]:
    """Return the table of what the job costs on each card, and which prices are not of now."""
    lines = table_lines(cards, CARD_COLUMNS, width)
    guessed = [one.offer.gpu for one in cards if GUESSED in one.offer.price_source]
    if guessed:
        text = f"spot prices of {' and '.join(guessed)} are guessed from on demand"
        lines += wrapped(text, width, indent="  ")
    return lines


def table_lines(
    rows: Sequence[JobOffer], columns: Sequence[Column], width: int, *, numbered: bool = False
) -> list[str]:
    """Return a heading and a line per row, within the width as far as the columns of rank 0 do.

    A column without any cell is left out.
    """
    numbers = [str(number) for number in range(1, len(rows) + 1)]
    listed = [
        (column.rank, column.right, [column.head, *(column.cell(row) for row in rows)])
        for column in columns
    ]
    listed = [one for one in listed if any(one[2][1:])]
    if numbered:
        listed.insert(0, (0, True, ["#", *numbers]))
    while True:
        widths = [max(cells(cell) for cell in column) for _, _, column in listed]
        ranks = [rank for rank, _, _ in listed]
        if sum(widths) + len(GAP) * (len(widths) - 1) <= width or not any(ranks):
            break
        listed.pop(ranks.index(max(ranks)))
    return [
        GAP.join(
            padded(column[at], room, right=right)
            for (_, right, column), room in zip(listed, widths, strict=True)
        ).rstrip()
        for at in range(len(rows) + 1)
    ]


def price_line(offer: Offer, now_s: float) -> str:
    """Describe the date, the age and the source of a price; empty without a source."""
    age_s = price_age_s(offer, now_s)
    if not offer.price_source or age_s is None:
        return f"price from {offer.price_source}" if offer.price_source else ""
    day = offer.priced_at[:16].replace("T", " ")
    days, hours_, minutes = (int(age_s // unit) for unit in (86400, 3600, 60))
    age = f"{days} days" if days > 1 else f"{hours_} h" if hours_ > 1 else f"{minutes} min"
    return f"price of {day}, {age} old, from {offer.price_source}"


def price_age_s(offer: Offer, now_s: float) -> float | None:
    """Return the age of an offer's price in seconds; None if it has no date."""
    priced_s = parse_utc_s(offer.priced_at)
    return None if priced_s is None else max(now_s - priced_s, 0.0)
