"""The timeline on the page is to scale, readable on a phone, and made of checked figures only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pages import read

from trainer.pages import html
from trainer.pages.timeline import LISTED_MAX, dollars, timeline_parts
from trainer.pages.timeline_lanes import lay_out_lanes
from trainer.pages.timeline_layout import DRAWN_MAX, NAMES, Stretch, lay_out, read_stretches

DAY_S = 86400.0


def span(activity: str, begin_s: float, end_s: float, **more: Any) -> dict[str, Any]:
    """A span as the facts of a run have it."""
    usual = {"machine": 1, "compute": activity not in {"released", "wait"}, "usd": 0.01}
    return {"activity": activity, "begin_s": begin_s, "end_s": end_s, **usual, **more}


def facts(*spans: dict[str, Any], own: bool = False, **more: Any) -> dict[str, Any]:
    """Facts with a timeline."""
    return {"timeline": {"spans": list(spans), "own": own}, **more}


RUN = (
    span("rent", 0.0, 60.0),
    span("train", 60.0, 660.0, usd=0.05),
    span("evicted", 660.0, 680.0, usd=0.0, compute=False),
    span("train", 680.0, 1280.0, usd=0.05),
    span("released", 1280.0, 3 * DAY_S, usd=1.0, compute=False),
    span("train", 3 * DAY_S, 3 * DAY_S + 600, machine=2, usd=0.05),
)


def shown(found: dict[str, Any]) -> str:
    """The section as HTML."""
    return str(html.section("Machine", *timeline_parts(found)))


def test_times_are_to_scale_and_long_ones_without_compute_are_drawn_broken() -> None:
    """Three days between two commands take six percent; equal trainings are equally wide."""
    boxes = lay_out(read_stretches(facts(*RUN)["timeline"]))

    assert [box.broken for box in boxes] == [False] * 4 + [True, False]
    assert boxes[4].width == pytest.approx(6.0)
    assert boxes[1].width == pytest.approx(boxes[3].width) == pytest.approx(boxes[5].width)
    assert boxes[0].width == pytest.approx(boxes[1].width / 10)
    assert boxes[-1].left + boxes[-1].width == pytest.approx(100.0)
    assert "broken, not to scale" in shown(facts(*RUN))


def test_the_legend_has_time_and_dollars_of_each_activity_and_of_all() -> None:
    """What is drawn is also told in words, in a table that needs no colour."""
    page = read(shown(facts(*RUN)))

    assert "training30\u00a0min\u00a000\u00a0s$0.15" in page.text
    assert "released2\u00a0d\u00a023\u00a0h$1.00" in page.text
    assert "machine time, and all dollars31\u00a0min\u00a000\u00a0s$1.16" in page.text
    assert page.plots == ["What the machine did, over time, with its cost"]
    assert "6 spans, one by one" in page.text
    assert page.text.count("▼") == 1


def test_a_machine_of_ones_own_is_shown_without_dollars() -> None:
    """No price is made up for what costs nothing here."""
    text = shown(facts(*RUN, own=True))

    assert "$" not in text
    assert "dollars" not in text
    assert "the user&#39;s own" in text


def test_a_rehearsal_says_that_nobody_was_charged() -> None:
    """Dollars of a machine that this computer plays are those of the list."""
    assert "at the listed spot price; nobody was charged" in shown(facts(*RUN, listed=True))


def test_a_run_without_a_timeline_has_no_section() -> None:
    """Facts of an earlier version, and a run that never began, leave the section out."""
    assert timeline_parts({}) == []
    assert timeline_parts(facts()) == []


@pytest.mark.parametrize(
    "bad",
    [
        span("<script>", 0.0, 1.0),
        span("train", 2.0, 1.0),
        span("train", 0.0, 1.0, usd="<b>"),
        span("train", 0.0, 1.0, usd=-1.0),
        span("train", 0.0, 1.0, machine="1"),
        span("train", 0.0, 1e15),
        {"activity": "train"},
        "train",
    ],
)
def test_other_values_are_refused(bad: Any) -> None:
    """A span that was not made here is no span: nothing of it reaches the page."""
    with pytest.raises(ValueError, match="timeline"):
        timeline_parts(facts(bad))


def test_thousands_of_evictions_are_drawn_and_listed_in_part() -> None:
    """A page stays small, and the strip as long as it is, however often a machine was taken."""
    spans = []
    for at in range(3000):
        spans += [
            span("train", at * 100.0, at * 100.0 + 90),
            span("evicted", at * 100.0 + 90, at * 100.0 + 100, compute=False),
        ]
    boxes = lay_out(read_stretches(facts(*spans)["timeline"]))
    text = shown(facts(*spans))

    assert boxes[-1].left + boxes[-1].width == pytest.approx(100.0)
    assert sum(box.stretch.usd for box in boxes) == pytest.approx(60.0)
    assert f"{6000 - LISTED_MAX:,} more are in report.json" in text
    assert len(text) < 1_000_000


@given(
    lengths=st.lists(
        st.tuples(st.floats(0.001, 1e6), st.sampled_from(sorted(NAMES)), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_every_run_fills_the_strip(lengths: list[tuple[float, str, bool]]) -> None:
    """Whatever the spans, they lie side by side from end to end, and each can be seen."""
    at_s, stretches = 0.0, []
    for seconds, activity, compute in lengths:
        stretches.append(
            Stretch(
                activity=activity,
                begin_s=at_s,
                end_s=at_s + seconds,
                machine=1,
                compute=compute,
                usd=0.1,
            )
        )
        at_s += seconds
    boxes = lay_out(stretches)

    assert boxes[0].left == 0.0
    for box, after in pairwise(boxes):
        assert after.left == pytest.approx(box.left + box.width)
    assert boxes[-1].left + boxes[-1].width == pytest.approx(100.0)
    assert min(box.width for box in boxes) > 0.1
    assert len(boxes) <= DRAWN_MAX


@pytest.mark.parametrize(
    ("usd", "words"),
    [(0.0, "$0.00"), (0.00002, "< $0.0001"), (0.0123, "$0.0123"), (1234.5, "$1,234.50")],
)
def test_amounts_read_as_people_write_them(usd: float, words: str) -> None:
    """Cents from ten cents on, smaller amounts exactly, and never nothing for something."""
    assert dollars(usd) == words


NODES = (
    span("train", 0.0, 600.0, usd=0.06, node=0),
    span("released", 600.0, 3 * DAY_S, usd=0.5, compute=False, node=0),
    span("train", 3 * DAY_S, 3 * DAY_S + 600, usd=0.06, machine=2, node=0),
    span("wait", 0.0, 200.0, usd=0.0, compute=False, node=1),
    span("train", 200.0, 500.0, usd=0.03, node=1),
    span("evicted", 500.0, 3 * DAY_S, usd=0.0, compute=False, node=1),
    span("train", 3 * DAY_S, 3 * DAY_S + 600, usd=0.06, machine=2, node=1),
)


def test_several_machines_have_a_lane_each_on_one_time_axis() -> None:
    """What happens at the same time is drawn at the same place, and as wide."""
    axis, lanes = lay_out_lanes(read_stretches(facts(*NODES)["timeline"]))

    assert [lane.node for lane in lanes] == [0, 1]
    first, second = (lane.boxes for lane in lanes)
    assert [box.stretch.activity for box in first] == ["train", "released", "train"]
    assert [box.broken for box in first] == [False, True, False]
    assert [box.broken for box in second] == [False, False, False, True, False]
    assert second[0].width == pytest.approx(first[0].width / 3)
    assert second[1].width == pytest.approx(first[0].width / 2)
    assert second[3].left == pytest.approx(first[1].left)
    assert (second[4].left, second[4].width) == pytest.approx((first[2].left, first[2].width))
    assert first[-1].left + first[-1].width == pytest.approx(100.0)
    assert axis[-1].usd_before + axis[-1].stretch.usd == pytest.approx(0.71)


def test_a_page_of_several_machines_has_lanes_and_a_line_for_each() -> None:
    """Machine time, evictions and dollars of each, beside the sums of all."""
    page = read(shown(facts(*NODES)))

    assert page.plots == ["What each machine did, over time, with the cost of all"]
    assert "node 020\u00a0min\u00a000\u00a0s0$0.62" in page.text
    assert "node 115\u00a0min\u00a000\u00a0s1$0.0900" in page.text
    assert "machine time, and all dollars35\u00a0min\u00a000\u00a0s$0.71" in page.text
    assert "of all machines together" in page.text
    assert page.text.count("▼") == 1
    assert "$" not in shown(facts(*NODES, own=True))


def test_several_machines_that_did_nothing_yet_are_shown() -> None:
    """A run that ends in the second in which it began has no time axis."""
    nothing = [span("wait", 5.0, 5.0, usd=0.0, compute=False, node=node) for node in (0, 1)]

    assert "2 spans, one by one" in read(shown(facts(*nothing))).text


def test_an_eviction_in_two_parts_is_one() -> None:
    """Its disk billed until another machine was asked for."""
    parts = (
        span("train", 0.0, 500.0, node=1),
        span("evicted", 500.0, 700.0, compute=False, node=1),
        span("evicted", 700.0, 800.0, usd=0.0, compute=False, machine=0, node=1),
        span("train", 0.0, 800.0, node=0),
    )
    text = read(shown(facts(*parts))).text

    assert text.count("▼") == 1
    assert "node 18\u00a0min\u00a020\u00a0s1$" in text


def test_a_node_that_is_no_number_is_refused() -> None:
    """As all that is not as it is made."""
    with pytest.raises(ValueError, match="node"):
        read_stretches(facts(span("train", 0.0, 1.0, node="<b>"))["timeline"])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(sorted(NAMES)), st.integers(0, 9000),
            st.integers(0, 9000), st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)  # fmt: skip
def test_lanes_of_any_times_are_inside_the_strip_and_keep_their_dollars(
    made: list[tuple[int, str, int, int, bool]],
) -> None:
    """Also where times overlap, since a clock jumped back, or a machine did nothing at all."""
    spans = [
        span(name, float(begin), float(begin + long), node=node, compute=compute)
        for node, name, begin, long, compute in made
    ]
    stretches = read_stretches(facts(*spans)["timeline"])
    _, lanes = lay_out_lanes(stretches) if any(one.seconds for one in stretches) else ([], [])

    for lane in lanes:
        for box in lane.boxes:
            assert -1e-6 <= box.left <= box.left + box.width <= 100 + 1e-6
        usd = sum(box.stretch.usd for box in lane.boxes)
        mine = [one for one in stretches if one.node == lane.node and one.seconds]
        assert usd == pytest.approx(sum(one.usd for one in mine))
    shown(facts(*spans))
