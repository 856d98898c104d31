"""The report's first sentence claims a change only if its interval excludes zero, and its price."""

from __future__ import annotations

from typing import Any

import pytest
from support import page_runs

from trainer.pages.headline import headline


def scored(before: float, after: float, gain: tuple[float, float] | None, **more: Any) -> Any:
    """What `report.json` has of a run with one figure before and after."""
    stage = {"metric": "accuracy", "n": 200, "low": 0.0, "high": 1.0, "better": "higher", **more}
    change = {"metric": stage["metric"], "value": after - before}
    return {
        "before": stage | {"value": before},
        "after": stage | {"value": after},
        "gain": gain and change | {"low": gain[0], "high": gain[1]},
        "evictions": [],
        "facts": {},
        "steps": 90,
        "finished": True,
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (scored(0.43, 0.69, (0.2, 0.3)), "accuracy 0.43 → 0.69"),
        (scored(0.43, 0.45, (-0.01, 0.06)), "no clear change in accuracy (0.43 → 0.45)"),
        (scored(0.43, 0.45, None), "no clear change in accuracy (0.43 → 0.45)"),
        (scored(0.69, 0.43, (-0.3, -0.2)), "accuracy 0.69 → 0.43 (worse)"),
        (scored(0.431, 0.434, (0.001, 0.005)), "accuracy 0.431 → 0.434"),
        (scored(0.5, 0.5, (0.0, 0.0)), "no clear change in accuracy (0.50 → 0.50)"),
        (scored(2.1, 1.6, (-0.6, -0.4), metric="nats_per_token", better="lower"),
         "loss in nats per token 2.10 → 1.60"),
        (scored(1.6, 2.1, (0.4, 0.6), metric="nats_per_token", better="lower"),
         "loss in nats per token 1.60 → 2.10 (worse)"),
        (scored(0.0, 0.25, (0.1, 0.4), metric="pass_at_1"), "pass@1 0.00 → 0.25"),
        (scored(12.0, 345.6, (300.0, 350.0), metric="own_metric"), "own metric 12 → 346"),
    ],
)  # fmt: skip
def test_the_headline_names_a_change_only_if_its_interval_excludes_zero(
    found: dict[str, Any], words: str
) -> None:
    """Rising, falling, unclear and unpaired scores of any metric are said as what they are."""
    assert headline(found) == words


@pytest.mark.parametrize(
    ("facts", "evictions", "words"),
    [
        ({"usd": 0.041, "hours": 0.117}, 1, " for 4 cents in 7 min, one eviction survived"),
        ({"usd": 1.204, "hours": 2.1}, 3, " for $1.20 in 2 h 06 min, three evictions survived"),
        ({"usd": 0.0034, "hours": 0.01}, 0, " for 0.3 cents in 36 s"),
        ({"usd": 0.01, "hours": 0.9999, "listed": True}, 12,
         " for 1 cent (listed price) in 60 min, 12 evictions survived"),
        ({"usd": 0.00002, "hours": 30.4}, 0, " for less than 0.01 cents in 30 h"),
        ({"usd": 0.0}, 0, ""),
        ({"usd": None, "hours": "7"}, 0, ""),
    ],
)  # fmt: skip
def test_the_headline_has_the_cost_the_time_and_the_evictions(
    facts: dict[str, Any], evictions: int, words: str
) -> None:
    """Money and time read as people say them; what is not known is left out."""
    found = scored(0.43, 0.69, (0.2, 0.3)) | {"facts": facts, "evictions": [{}] * evictions}
    assert headline(found) == f"accuracy 0.43 → 0.69{words.replace('60 min', '1 h 00 min')}"


def test_a_clear_second_figure_stands_for_an_unclear_first_one() -> None:
    """Of several paired figures the first that changed clearly is the headline's."""
    found = scored(0.43, 0.45, (-0.1, 0.1))
    for stage, value in (("before", 2.0), ("after", 1.5)):
        found[stage]["loss"] = page_runs.loss_of(value)
    found["after"]["loss"]["change"] = {
        "nats_per_token": {"value": -0.5, "low": -0.6, "high": -0.4}
    }

    assert headline(found) == "loss in nats per token 2.00 → 1.50"


def test_free_answers_do_not_borrow_the_gain_of_bound_ones() -> None:
    """The paired gain is of bound answers: if free ones are the score, it is named for itself."""
    found = scored(0.2, 0.9, (0.01, 0.1), decoding="free")
    found["gain"] |= {"metric": "exact_match", "value": 0.05}
    for stage, value in (("before", 0.6), ("after", 0.65)):
        found[stage] |= {way: {"exact_match": {"value": value}} for way in ("bound", "free")}

    assert headline(found) == "exact match of answers held to the labels 0.60 → 0.65"
    found["gain"]["decoding"] = "free"
    assert headline(found) == "accuracy 0.20 → 0.90"


def test_sets_of_labels_have_the_change_of_their_micro_f1() -> None:
    """Beside the change of exact matches the result has that of the headline's own figure."""
    found = scored(0.2, 0.7, (0.1, 0.3), metric="micro_f1")
    found["gain"] |= {"metric": "exact_match"}
    assert headline(found) == "no clear change in micro F1 (0.20 → 0.70)"

    found["gain"]["headline"] = {"metric": "micro_f1", "value": 0.5, "low": 0.4, "high": 0.6}
    assert headline(found) == "micro F1 0.20 → 0.70"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "failed", "step": 45, "steps": 90, "error": "out of memory\nmore"},
         "failed at step 45 of 90: out of memory"),
        ({"phase": "preempted", "step": 45, "steps": 90},
         "stopped at step 45 of 90, not finished"),
        ({"phase": "training", "step": 45, "steps": 90},
         "training: step 45 of 90, training loss 2.00 → 0.50"),
        ({"phase": "evaluating"}, "scoring: step 45, training loss 2.00 → 0.50"),
        ({"phase": "<b>", "step": "x"}, "45 steps, training loss 2.00 → 0.50, not scored"),
        (None, "45 steps, training loss 2.00 → 0.50, not scored"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_done_or_not_scored_says_so(status: Any, words: str) -> None:
    """A failed, stopped, running or unscored run claims nothing but what is there."""
    found = {"status": status, "steps": 45, "first_loss": 2.0, "last_loss": 0.5, "facts": {}}
    assert headline(found) == words
