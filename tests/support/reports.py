"""A run directory of plain values, as a finished training leaves it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.codec import Example
from trainer.data.template import Template
from trainer.eval_tables.labels import CostTable, LabelEvalTable
from trainer.scoring import labels as label_scoring
from trainer.scoring.answers import Answer
from trainer.scoring.eval_set import EvalSet, LabelledTexts
from trainer.scoring.predict import Predictions

MOODS = ["negative", "neutral", "positive"]


class _Oracle:
    """Stands in for a model: answers a share of the rows rightly."""

    def __init__(self, right: int) -> None:
        self.right = right

    def predict(
        self, _model: object, _tokenizer: object, eval_set: Any, **_: object
    ) -> Predictions:
        answers = [
            labels if at < self.right else frozenset({"neutral"})
            for at, labels in enumerate(eval_set.references)
        ]
        return Predictions(
            texts=["<b>" for _ in answers],
            stopped=[True] * len(answers),
            free=[Answer(labels=labels, unknown=(), readable=True) for labels in answers],
            bound=answers,
            probabilities=np.array(
                [[0.8 if mood in labels else 0.1 for mood in MOODS] for labels in answers]
            ),
        )


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a finished run of thirty steps leaves behind."""
    steps = [
        {"step": at, "loss": 3 / at, "lr": 1e-3, "tokens": 100, "seconds": 0.5, "skipped": False}
        for at in range(1, 31)
    ]
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 31, "lo', encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model": {"id": "<i>m</i>"}}', encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "qft.json").write_text(
        '{"status": {"exact": true}, "best": {"step": 20, "loss": 0.5}}', encoding="utf-8"
    )
    table = LabelEvalTable(kind="label", labels=MOODS, costs={"negative": CostTable(miss=5)})
    references = tuple(frozenset({MOODS[at % 3]}) for at in range(12))
    items = tuple(Example((1, 2), (-100, 2), f"p{at}", "c", at + 1, 1) for at in range(12))
    eval_set = EvalSet(
        items=items, references=references, table=table, completion=Template.parse("{mood}")
    )
    results = []
    for stage, right in (("before", 0), ("after", 12)):
        monkeypatch.setattr(label_scoring, "predict", _Oracle(right).predict)
        result = label_scoring.evaluate(
            None, None, eval_set, stage=stage, on_progress=lambda *_: None
        )
        results.append(result)
    training = LabelledTexts(
        texts=[f"mood {mood} {at}" for at in range(4) for mood in MOODS],
        labels=np.tile(np.eye(3, dtype=bool), (4, 1)),
    )
    results[0].details["baselines"] = label_scoring.score_baselines(training, eval_set)
    results[1].details["gain"] = label_scoring.gain(*results)
    for result in results:
        path = tmp_path / f"eval-{result.stage}.json"
        path.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return tmp_path
