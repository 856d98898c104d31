"""The quickstart's rows are confident, balanced, disjoint, and the same everywhere."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from trainer.config import TrainerConfig

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    """Load the script as a module, without running it."""
    spec = importlib.util.spec_from_file_location("prepare", QUICKSTART / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up by name.
    import sys

    sys.modules["prepare"] = module
    spec.loader.exec_module(module)
    return module


def tweet(text: str, sentiment: str = "neutral", confidence: str = "1") -> dict[str, str]:
    """One row in the form of the corpus."""
    return {"text": text, "sentiment": sentiment, "confidence": confidence}


def test_rows_are_balanced_disjoint_and_confident(prepare: ModuleType) -> None:
    """Each label gets its third of both sets, no text is in both, and no doubtful one is in any."""
    tweets = [
        tweet(f"tweet {n} is {label}", label, confidence)
        for n in range(20)
        for label in prepare.LABELS
        for confidence in ("1", "0.95")
    ] + [tweet(f"doubtful {n}", label, "0.5") for n in range(20) for label in prepare.LABELS]
    rows = prepare.select(tweets, train=30, held_out=12, seed=0)

    assert Counter(row["label"] for row in rows.train) == dict.fromkeys(prepare.LABELS, 10)
    assert Counter(row["label"] for row in rows.held_out) == dict.fromkeys(prepare.LABELS, 4)
    texts = [row["text"] for row in rows.train + rows.held_out]
    assert len(set(texts)) == 42
    assert not [text for text in texts if text.startswith("doubtful")]


def test_retweets_and_contradicted_tweets_are_not_drawn_twice(prepare: ModuleType) -> None:
    """Texts equal but for case, links and names are one; one with two labels is left out."""
    same = [
        tweet("RT @a Great flight http://x.y/z"),
        tweet("great FLIGHT!"),
        tweet("@b great flight"),
    ]
    torn = [tweet("so so", "negative"), tweet("So, so", "positive")]
    rest = [tweet(f"{n} {label}", label) for n in range(2) for label in ("negative", "positive")]
    broken = [tweet("caf\ufffd", "neutral"), tweet("", "neutral"), tweet("x", "neutral", "")]
    rows = prepare.select(
        same + torn + rest + broken + [tweet("fine")], train=3, held_out=3, seed=1
    )
    drawn = sorted(row["text"] for row in rows.train + rows.held_out if row["label"] == "neutral")

    assert drawn == ["RT @a Great flight http://x.y/z", "fine"]
    assert not [row for row in rows.train + rows.held_out if row["text"].casefold() == "so so"]


def test_the_draw_depends_on_the_seed_and_not_on_the_order(prepare: ModuleType) -> None:
    """One seed gives one set of rows, however the corpus is sorted; another seed another set."""
    tweets = [tweet(f"{n} {label}", label) for n in range(30) for label in prepare.LABELS]
    drawn = prepare.select(tweets, train=30, held_out=15, seed=0)

    assert prepare.select(tweets[::-1], train=30, held_out=15, seed=0) == drawn
    assert prepare.select(tweets, train=30, held_out=15, seed=1) != drawn


def test_too_few_tweets_are_reported(prepare: ModuleType) -> None:
    """A corpus that cannot fill the sets is an error with both numbers."""
    with pytest.raises(ValueError, match="4 tweets are wanted for negative, there are 0"):
        prepare.select([], train=6, held_out=6, seed=0)


def test_the_run_file_holds_tables_that_the_trainer_accepts() -> None:
    """The trainer's part of `run.yaml` passes the trainer's own check."""
    tables = yaml.safe_load((QUICKSTART / "run.yaml").read_text(encoding="utf-8"))
    config = TrainerConfig.model_validate(
        {key: tables[key] for key in TrainerConfig.model_fields if key in tables}
    )

    assert config.train.steps == 90
    assert config.label_table is not None
    assert config.label_table.labels == ["negative", "neutral", "positive"]
