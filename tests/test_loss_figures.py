"""Figures of a loss are ratios of sums over documents, and differences are paired."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from trainer.scoring.loss_figures import RowLoss, loss_changes, loss_figures


def rows(seed: int, *, count: int = 40, better: float = 1.0) -> list[RowLoss]:
    """Documents of very different length, so that a mean of ratios is another figure."""
    random = np.random.default_rng(0)
    noise = np.random.default_rng(seed)
    made = []
    for row in range(1, count + 1):
        tokens = int(random.integers(2, 90))
        nats = tokens * better * float(random.uniform(0.5, 3) + 0.05 * noise.normal())
        made.append(
            RowLoss(
                row=row,
                nats=nats,
                text_nats=nats * 0.9,
                tokens=tokens,
                right=tokens // 3,
                bytes=4 * tokens,
            )
        )
    return made


def sums(found: list[RowLoss], name: str) -> float:
    """The sum of one column."""
    return float(sum(getattr(one, name) for one in found))


def test_each_figure_is_a_ratio_of_sums() -> None:
    """Nats, bits, perplexity, bits per byte and accuracy are those of the whole set."""
    documents = rows(1)
    found = loss_figures(documents, resamples=1000)
    nats = sums(documents, "nats") / sums(documents, "tokens")

    assert {name: one["value"] for name, one in found["figures"].items()} == pytest.approx(
        {
            "nats_per_token": nats,
            "bits_per_token": nats / math.log(2),
            "perplexity": math.exp(nats),
            "bits_per_byte": sums(documents, "text_nats") / math.log(2) / sums(documents, "bytes"),
            "token_accuracy": sums(documents, "right") / sums(documents, "tokens"),
        }
    )
    for one in found["figures"].values():
        assert one["low"] < one["value"] < one["high"]


def test_the_interval_is_that_of_the_ratio_under_resampled_documents() -> None:
    """It is what drawing whole documents with replacement gives, to the noise of the draws."""
    documents = rows(1)
    found = loss_figures(documents, resamples=4000)["figures"]["nats_per_token"]
    random = np.random.default_rng(99)
    drawn = []
    for _ in range(4000):
        chosen = [documents[at] for at in random.integers(0, len(documents), len(documents))]
        drawn.append(sums(chosen, "nats") / sums(chosen, "tokens"))
    low, high = np.quantile(drawn, [0.025, 0.975])

    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=0.02)


def test_differences_are_paired() -> None:
    """A small gain on every document is clear, though the two intervals overlap widely."""
    before = loss_figures(rows(1), resamples=1000)
    after = loss_figures(rows(2, better=0.97), resamples=1000)
    change = loss_changes(before, after, resamples=1000)
    assert change is not None
    was, now, by = (one["nats_per_token"] for one in (before["figures"], after["figures"], change))

    assert by["value"] == pytest.approx(now["value"] - was["value"])
    assert by["high"] < 0
    assert now["high"] > was["low"]
    assert by["high"] - by["low"] < (was["high"] - was["low"]) / 3


def test_other_targets_have_no_difference() -> None:
    """Two losses on other rows, or on other tokens of the same rows, are not compared."""
    before = loss_figures(rows(1), resamples=1000)

    assert loss_changes(
        before, loss_figures(rows(1, count=39), resamples=1000), resamples=1000
    ) is (None)
    longer = [RowLoss(**{**vars(one), "tokens": one.tokens + 1}) for one in rows(1)]
    assert loss_changes(before, loss_figures(longer, resamples=1000), resamples=1000) is None


def test_a_conversation_is_one_document() -> None:
    """Examples of the same row are summed before anything is drawn."""
    halves = [RowLoss(**{**vars(one), "row": (one.row + 1) // 2}) for one in rows(1)]
    found = loss_figures(halves, resamples=1000)

    assert found["documents"] == 20
    assert found["rows"]["row"] == list(range(1, 21))
    assert sum(found["rows"]["tokens"]) == found["tokens"] == sums(halves, "tokens")


def test_without_bytes_there_are_no_bits_per_byte() -> None:
    """One row whose text is not given back leaves the other figures and takes this one."""
    documents = rows(1)
    documents[3] = RowLoss(**{**vars(documents[3]), "bytes": None})
    found = loss_figures(documents, resamples=1000)

    assert found["bytes"] is None
    assert found["figures"]["bits_per_byte"] is None
    assert found["figures"]["perplexity"] is not None


def test_a_row_without_a_number_is_counted_and_left_out() -> None:
    """NaN of one row does not spoil the others, and of all rows leaves no figure."""
    documents = rows(1)
    lost = RowLoss(**{**vars(documents[0]), "nats": None, "text_nats": None})
    found = loss_figures([lost, *documents[1:]], resamples=1000)
    nothing = loss_figures([lost], resamples=1000)
    nats = sums(documents[1:], "nats") / sums(documents[1:], "tokens")

    assert found["not_numbers"] == 1
    assert found["figures"]["nats_per_token"]["value"] == pytest.approx(nats)
    assert set(nothing["figures"].values()) == {None}


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_none_or_all_tokens_has_an_interval(share: int) -> None:
    """Where no token of 22 documents is right, the interval is not [0, 0]."""
    documents = [RowLoss(**{**vars(one), "right": share * one.tokens}) for one in rows(1, count=22)]
    found = loss_figures(documents, resamples=1000)["figures"]["token_accuracy"]

    assert found["value"] == share
    assert found["high"] - found["low"] == pytest.approx(0.149, abs=5e-4)


def test_the_result_is_plain_json_also_for_a_hopeless_model() -> None:
    """A loss of thousands of nats a token is no infinity in the file."""

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    documents = [RowLoss(**{**vars(one), "nats": 1e6 * one.tokens}) for one in rows(1)]
    text = json.dumps(loss_figures(documents, resamples=1000))

    assert json.loads(text, parse_constant=refuse)["documents"] == 40
