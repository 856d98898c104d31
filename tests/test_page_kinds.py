"""The report of a run shows what its scoring really writes, whatever kind of answer that is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from support import tiny
from support.page_runs import write_run
from support.pages import read
from support.scored_answers import CHAT_TEMPLATE

from trainer.config import TrainerConfig
from trainer.pages import report
from trainer.pages.run_files import build_report
from trainer.scoring.evaluate import run

STAGES: tuple[Literal["before", "after"], ...] = ("before", "after")

COLOURS = ("red", "green", "blue")
WORDS = {"prompt": "{ask}: ", "completion": " {answer}"}
ROWS: list[dict[str, Any]] = [
    {
        "ask": f"<b>{at}</b>",
        "answer": COLOURS[at % 3],
        "json": json.dumps({"colour": COLOURS[at % 3], "<i>": at}),
        "ways": list(COLOURS),
        "talk": [
            {"role": role, "content": f"{role} {at} {turn}"}
            for turn in range(2)
            for role in ("user", "assistant")
        ],
    }
    for at in range(8)
]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text": ({"kind": "text", "measures": ["chrf", "exact"], "tokens_max": 4}, WORDS, "chrF"),
    "json": ({"kind": "text", "measures": ["json"], "tokens_max": 4},
             {"prompt": "{ask}: ", "completion": "{json}"}, "JSON"),
    "chat": ({"kind": "chat", "measures": ["tokens_f1"], "tokens_max": 4},
             {"messages": "talk", "ignore": ["ask", "answer", "json", "ways"]}, "token F1"),
    "choice": ({"kind": "choice", "options": "ways"}, WORDS, "accuracy"),
    "label": ({"kind": "label", "labels": list(COLOURS), "shots": 2}, WORDS, "accuracy"),
    "loss": ({"kind": "loss"}, WORDS, "loss in nats per token (lower is better)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two small models with random weights; the second stands for the trained one."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny.make_model(tmp_path_factory.mktemp("model"))
    made = [AutoModelForCausalLM.from_pretrained(str(folder)) for _ in range(2)]
    torch.manual_seed(1)
    with torch.no_grad():
        for one in made[1].parameters():
            one.add_(0.02 * torch.randn_like(one))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_scoring_writes_is_shown(kind: str, models: list[Any], tmp_path: Path) -> None:
    """Both stages of each kind have bars, browsable rows and, paired, their change."""
    table, data, metric = KINDS[kind]
    run_dir = write_run(tmp_path / "run", [], steps=10)
    for name in ("train", "eval"):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (run_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = TrainerConfig.model_validate(
        {"model": {"id": "x"}, "eval": table,
         "data": {"train": "train.jsonl", "eval": "eval.jsonl", **data}}
    )  # fmt: skip
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    for stage, model in zip(STAGES, models, strict=True):
        run(run_dir, config, model, tokenizer, stage=stage, on_progress=lambda *_: None)
    found = build_report(run_dir, {"usd": 0.041})
    page = read(report.as_page(found, run_dir, name="run"))
    scores = page.text.partition("Before and after")[2].partition("What it got wrong")[0]

    assert "cannot be shown" not in page.text
    assert metric in scores
    assert "Change by training, paired by row" in scores
    assert "8 held-out rows" in scores
    assert "fine-tuned" in scores
    assert found["after"]["loss"]["figures"]["nats_per_token"]["value"] > 0
    assert "row 1, score" in page.text or "row 2, score" in page.text


def test_the_page_says_why_there_is_only_a_loss(tmp_path: Path) -> None:
    """Where nobody asked for answers and none could be generated, the reason stands below."""
    run_dir = write_run(tmp_path / "run", [], steps=10)
    figure = {"value": 2.0, "low": 1.5, "high": 2.5}
    result = {
        "version": 1, "stage": "after", "kind": "loss", "metric": "nats_per_token",
        "decoding": "none", **figure, "n": 3, "better": "lower", "stop_rate": None,
        "parse_failures": 0, "loss": {"figures": {"nats_per_token": figure}},
        "details": {"documents": [], "not_answered": "no <b> turn to answer"},
    }  # fmt: skip
    (run_dir / "eval-after.json").write_text(json.dumps(result), encoding="utf-8")

    page = read(report.as_page(build_report(run_dir, {}), run_dir, name="run"))

    assert "there is only their loss: no <b> turn to answer" in page.text
