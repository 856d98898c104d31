"""A plan's page fits its width, breaks no word, and ends with one true line: by values alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commands.runs.planning.answer import answer, budget_end
from commands.runs.planning.figures import dollars, hourly, hours, hours_span, memory
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.offers_table import offer_lines
from commands.runs.planning.page import PlanPage
from commands.runs.planning.priced_change import Advice
from commands.runs.planning.ranking import JobOffer, job_offer
from commands.runs.planning.summary import three_lines
from commands.ui.errors import Exit
from commands.ui.wrap import cells, output_width, wrapped
from infra.offer import Offer
from infra.provider import Safeguard
from infra.run.budget import Budget
from trainer.estimate.span import Span

NOW_S = 1796025600.0  # 2026-11-30T00:00:00Z
BUDGET = Budget(usd=5.0, hours=24.0, evictions=20)
REGIONS = ("westus2", "eastus", "southcentralus", "germanywestcentral", "australiaeast")


def offer(region: str, **changes: Any) -> Offer:
    """A T4 with everything that a vendor says of it."""
    made = Offer(
        provider="azure",
        region=region,
        size="Standard_NC4as_T4_v3",
        gpu="T4",
        gpu_memory_gb=16,
        spot_usd_per_h=0.149174,
        on_demand_usd_per_h=0.526,
        idle_usd_per_h=0.018,
        eviction_band="0-5",
        placement_score="High",
        quota_left=25,
        price_source="retail prices api",
        priced_at="2026-11-29T23:50:00+00:00",
    )
    return replace(made, **changes)


def job(card: str = "T4", likely_h: float = 6.0, **changes: Any) -> JobEstimate:
    """A job that fits."""
    made = JobEstimate(
        card=card,
        card_bytes=15.8e9,
        memory_bytes=Span(low=6.2e9, likely=6.9e9, high=7.9e9),
        fits=True,
        micro_batch=4,
        trained_tokens=8e6,
        parts=(
            JobPart(name="set-up", hours=Span(low=0.1, likely=0.2, high=0.3)),
            JobPart(name="train", hours=Span.within_factor(likely_h, 1.5)),
        ),
        notes=("no card has shown this rate yet.",),
    )
    return replace(made, **changes)


def page(*, cap: float = 0.25, budget: Budget = BUDGET, **changes: Any) -> PlanPage:
    """A page of nine offers, the last three of them blocked by a sentence."""
    regions = [*REGIONS, *(f"{region}/1" for region in REGIONS[:4])]
    found = [
        offer(
            one.partition("/")[0],
            zone=one.partition("/")[2],
            blocked_by="spot quota (lowPriorityCores) of the region: 3 of 3 vCPUs used, 4 needed; "
            "ask for more at https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade"
            if at > 5
            else "",
        )
        for at, one in enumerate(regions)
    ]
    offers = tuple(job_offer(one, job(), cap=cap, budget=budget) for one in found)
    others = [offer("westus2", gpu="A10", spot_usd_per_h=0.59), offer("westus2", gpu="H100")]
    cards = (
        offers[0],
        job_offer(others[0], job("A10", 2.0), cap=cap, budget=budget),
        job_offer(others[1], job("H100", 1.0, fits=False), cap=cap, budget=budget),
    )
    made = PlanPage(
        run="toxic-phi",
        provider="azure",
        offers=offers,
        cards=cards,
        max_price_usd_per_h=cap,
        budget=budget,
        worst_case_usd=5.0,
        simulated=False,
        answer=answer(offers, cards, cap=cap, budget=budget, steps=1000),
        advice=(Advice(change="train.micro_batch: 2", effect="1.2 GB less", keeps_result=True),),
        too_long="`train.max_length` is 4096, and the base was made for texts of 2048 tokens",
        note="A10G is the name of a card that only AWS rents out; here it means the A10",
        safeguards=(
            Safeguard(name="price cap", is_set=True, detail="Azure evicts the machine " * 9),
            Safeguard(name="self-release", is_set=False, detail="no right to", hint="ask for it"),
        ),
        offers_at_s=NOW_S,
    )
    return replace(made, **changes)


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_line_fits_and_no_word_is_broken(width: int, *, all_of_them: bool) -> None:
    """At each width the words of the page are those of the page without any limit."""
    wide = page().lines(10_000, all_of_them=all_of_them)
    shown = page().lines(width, all_of_them=all_of_them)

    too_long = [line for line in shown if cells(line) > width and len(line.split()) > 1]
    assert too_long == []
    words = {word for line in wide for word in line.split()}
    assert {word for line in shown for word in line.split()} <= words


def test_the_answer_comes_first_and_last() -> None:
    """Three lines on memory, hours and dollars, then offers and limits, then what would happen."""
    lines = page().lines(80)

    assert lines[0] == "run `toxic-phi` on azure, cap $0.25/h"
    assert [line.split()[0] for line in lines[2:5]] == ["memory", "hours", "dollars"]
    assert lines[2] == "memory   6.9 GB of the T4's 15.8 (6.2 to 7.9): fits, 4 rows at once"
    assert lines[3].startswith("hours    6.2 h (4.1 to 9.3): set-up 12 min, train 6.0 h")
    assert lines[4] == "dollars  $1.04 ($0.69 to $1.55), worst case $2.49"
    assert "3 of 9, in the order they are tried; `qft plan --all` shows the others" in lines
    assert lines[-3:] == [
        "advice: train.micro_batch: 2: 1.2 GB less; the result stays the same",
        "",
        "nothing was created; `qft run` goes ahead",
    ]


def test_three_offers_are_shown_and_all_on_request() -> None:
    """The rows are numbered; blocked ones have their reason below them."""
    short, whole = page().lines(80), page().lines(80, all_of_them=True)

    assert [line.split()[0] for line in short if "_T4_v3" in line] == ["1", "2", "3"]
    assert [line.split()[0] for line in whole if "_T4_v3" in line] == [*"123456789"]
    assert len([line for line in whole if "spot quota (lowPriorityCores)" in line]) == 3
    assert not [line for line in short if "spot quota" in line]
    assert [line for line in whole if line.startswith("note: no card has shown")]


def test_all_shows_the_source_of_each_rate() -> None:
    """A part that nobody has measured says so; the short page has only the longest parts."""
    parts = (
        JobPart(name="set-up", hours=Span.exactly(0.2), source="our own, 2026-11-22"),
        JobPart(name="train", hours=Span.exactly(6.0)),
    )
    one = job_offer(offer("eastus"), job(parts=parts), cap=0.25, budget=BUDGET)
    short, whole = (page(offers=(one,)).lines(80, all_of_them=all_) for all_ in (False, True))

    assert "         set-up 12 min: our own, 2026-11-22" in whole
    assert "         train 6.0 h: nobody has measured it for this trainer" in whole
    assert not [line for line in short if "our own" in line]


def test_a_card_that_costs_clearly_less_is_named() -> None:
    """With the cap that it takes; a saving within what nobody knows is no reason to change."""
    a10 = offer("westus2", gpu="A10", spot_usd_per_h=0.59)
    slow = job_offer(offer("eastus"), job(), cap=0.25, budget=BUDGET)
    much, little = (
        job_offer(a10, job("A10", hours_), cap=0.25, budget=BUDGET) for hours_ in (1.0, 1.4)
    )

    shown = page(offers=(slow,), cards=(much, slow)).lines(80)
    assert "least in all: `vm.gpu: A10` and `vm.max_price: 0.71`, about $0.73" in shown
    for cards in ((little, slow), (slow, much)):
        lines = page(offers=(slow,), cards=cards).lines(80)
        assert not [line for line in lines if line.startswith("least in all")]


def test_a_wider_terminal_shows_more_columns() -> None:
    """What matters least is left out first; size, place and price always stay."""
    offers = list(page().offers)
    heads = {
        width: offer_lines(offers, width, all_of_them=False, now_s=NOW_S)[0]
        for width in (50, 80, 100)
    }

    assert heads[50].split() == ["#", "size", "place", "$/h"]
    assert "evicted" in heads[80]
    assert "on demand" not in heads[80]
    assert "on demand" in heads[100]


def test_wide_characters_count_twice() -> None:
    """Text of other scripts is wrapped by the columns that it takes."""
    text = "warning: the folder 実行フォルダ has no eval.jsonl and 予算 is too small for it"
    lines = wrapped(text, 40, indent="  ")

    assert max(cells(line) for line in lines) <= 40
    assert " ".join(" ".join(lines).split()) == text
    assert (cells("実行"), cells("é"), cells("é")) == (4, 1, 1)


def test_output_is_as_wide_as_its_terminal_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets 80 columns; a very wide terminal 100, and a very narrow one 40."""
    monkeypatch.delenv("COLUMNS", raising=False)
    widths = [output_width()]
    for columns in ("100", "200", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(output_width())

    assert widths == [80, 100, 100, 40]


def test_unknown_figures_are_called_so() -> None:
    """A job without figures has its reason in each line, and no dollars."""
    unknown = JobEstimate(card="T4", card_bytes=15.8e9, problem="the base's sizes are not known")
    lines = three_lines(job_offer(offer("eastus"), unknown, cap=None, budget=BUDGET), 80)

    assert lines == [
        "memory   the base's sizes are not known",
        "hours    the base's sizes are not known",
        "dollars  not known",
    ]
    assert three_lines(None, 80)[2] == "dollars  not known"


def test_a_need_that_may_be_more_than_the_card_has_likely_fits() -> None:
    """Where only the high end of the range is above the card, no more is claimed than that."""
    close = job(memory_bytes=Span(low=13e9, likely=15e9, high=17e9))
    line = three_lines(job_offer(offer("eastus"), close, cap=None, budget=BUDGET), 80)[0]

    assert line.endswith("15.0 GB of the T4's 15.8 (13.0 to 17.0): likely fits, 4 rows at once")


def test_simulated_dollars_are_called_so() -> None:
    """Nobody takes a rehearsal's dollars for a bill."""
    lines = page(simulated=True).lines(80)

    assert "simulated, nobody is charged" in " ".join(lines[4:6])


def refused(*offers: JobOffer, cards: tuple[JobOffer, ...] = (), cap: float | None = 0.25) -> str:
    """The words of an answer that does not go ahead, after its exit code."""
    found = answer(offers, cards or offers, cap=cap, budget=BUDGET, steps=1000)
    assert not found.goes_ahead
    return f"{int(found.exit_code)}: {found.text}"


def test_the_last_line_names_the_first_obstacle() -> None:
    """No offer, no capacity, a price above the cap, a card that is too small."""
    full = offer("eastus", blocked_by="no capacity", clears=True)
    dear = offer("eastus", gpu="A10", spot_usd_per_h=1.1, blocked_by="costs 1.1", clears=True)
    other = job_offer(offer("eastus"), job(), cap=0.25, budget=BUDGET)
    a10 = job_offer(dear, job("A10", 2.0), cap=0.25, budget=BUDGET)
    small = job_offer(
        offer("eastus"),
        job(fits=False, memory_bytes=Span.exactly(20e9)),
        cap=0.25,
        budget=BUDGET,
    )

    assert refused() == "3: nothing is offered: name other `vm.regions`"
    assert refused(job_offer(full, job(), cap=0.25, budget=BUDGET)) == (
        "3: no machine can be rented now; `qft run` waits until one is free "
        "(Standard_NC4as_T4_v3 in eastus: no capacity)"
    )
    assert refused(a10, cards=(other, a10)) == (
        "3: nothing fits under $0.25/h; the cheapest is $1.10: raise `vm.max_price` or take a T4 "
        "(about $1.04 in all)"
    )
    assert refused(small, cards=(a10, small)) == (
        "2: nothing was created: a T4 is too small: 20.0 GB needed, 15.8 there; take an A10 "
        "(about $2.46 in all), with `vm.max_price: 1.33`"
    )


def test_unknown_figures_do_not_stop_a_run() -> None:
    """Whether it fits is then open, and said to be."""
    unknown = JobEstimate(card="T4", card_bytes=15.8e9, problem="not known")
    offers = [job_offer(offer("eastus"), unknown, cap=None, budget=BUDGET)]

    found = answer(offers, offers, cap=None, budget=BUDGET, steps=None)

    assert found.exit_code is Exit.DONE
    assert found.text.endswith("`qft run` goes ahead; whether it fits is not known")


@pytest.mark.parametrize(
    ("share", "steps", "words"),
    [
        (0.48, 1000, "at about step 480 of 1000"),
        (0.0, 1000, "before its first step"),
        (0.48, None, "after about 48% of its steps"),
        (1.0, 1000, "after its last step, before the adapter is home"),
    ],
)
def test_where_a_budget_ends_is_a_step(share: float, steps: int | None, words: str) -> None:
    """The step is the one that is done when the money is gone."""
    assert budget_end(share, steps) == words


def test_figures_are_short() -> None:
    """Cents below ten cents have three digits; minutes come before hours."""
    assert [dollars(one) for one in (0.0, 0.0001, 0.0042, 0.5, 12.345)] == [
        "$0.00", "under $0.001", "$0.004", "$0.50", "$12.35",
    ]  # fmt: skip
    assert [hourly(one) for one in (0.25, 0.149174, 1.1)] == ["$0.25", "$0.1492", "$1.10"]
    assert [hours(one) for one in (0.005, 0.5, 6.84, 123.4)] == [
        "under a minute", "30 min", "6.8 h", "123 h",
    ]  # fmt: skip
    assert hours_span(Span(low=0.5, likely=1.5, high=3.0)) == "1.5 h (30 min to 3.0 h)"
    assert hours_span(Span(low=0.2, likely=0.25, high=0.5)) == "15 min (12 to 30)"
    assert memory(Span.exactly(7e9), "T4", 15.8e9) == "7.0 GB of the T4's 15.8"
