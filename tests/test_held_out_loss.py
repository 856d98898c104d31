"""The loss of held-out rows is that of a plain loop, row by row, whatever shares a batch."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import make_t5
from support.tiny import make_config, make_model, make_rows, make_tokenizer, write_config

from trainer.config import TrainerConfig
from trainer.data.codec import Example
from trainer.data.examples import load_examples
from trainer.loss import target_losses
from trainer.scoring import evaluate, held_out_loss
from trainer.scoring.held_out_loss import measure_rows
from trainer.scoring.loss_figures import RowLoss

CONVERSATION = [
    {"role": "user", "content": "is it late"},
    {"role": "assistant", "content": "not so very"},
    {"role": "user", "content": "and the sky"},
    {"role": "assistant", "content": "grey as ever, naïve 你"},
]
DATA: dict[str, dict[str, Any]] = {
    "causal": {},
    "seq2seq": {},
    "every token": {"loss_on": "all"},
    "chat": {
        "messages": "turns",
        "chat": "markers",
        "ignore": ["text", "mood"],
        "prompt": "",
        "completion": "",
    },
    "text": {"text": "text", "prompt": "", "completion": ""},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A decoder-only model."""
    from transformers import AutoModelForCausalLM

    directory = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def t5() -> Any:
    """An encoder-decoder model."""
    return make_t5().eval()


def scored_run(directory: Path, way: str = "causal", **eval_table: Any) -> TrainerConfig:
    """Lay out rows to hold out, and return a config that scores them as its data has it."""
    rows = make_rows(directory / "rows.jsonl", 9)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    turns = [CONVERSATION, CONVERSATION[:2], CONVERSATION[2:]]
    found = [line | {"turns": turns[at % 3]} for at, line in enumerate(lines)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    config = make_config(directory, rows, data={"eval": str(rows), **DATA[way]})
    write_config(directory, config | ({"eval": eval_table} if eval_table else {}))
    return TrainerConfig.model_validate(config | ({"eval": eval_table} if eval_table else {}))


def examples(config: TrainerConfig, *, seq2seq: bool = False) -> Sequence[Example]:
    """The held-out rows as tokens."""
    path = Path(config.data.eval or "")
    return load_examples(config.data, path, make_tokenizer(), max_length=128, seq2seq=seq2seq).items


def plain_loop(model: Any, items: Sequence[Example]) -> list[tuple[float, int, int]]:
    """Nats, targets and greedily right targets of each example, one alone at a time."""
    found = []
    for item in items:
        inputs, labels = torch.tensor([item.input_ids]), torch.tensor([item.labels])
        with torch.no_grad():
            logits = model(input_ids=inputs, labels=labels).logits[0]
        if not model.config.is_encoder_decoder:
            logits, labels = logits[:-1], labels[:, 1:]
        nats, tokens, right = 0.0, 0, 0
        for row, label in zip(logits, labels[0].tolist(), strict=True):
            if label == -100:
                continue
            exponents = [math.exp(float(one)) for one in row.double()]
            nats -= math.log(exponents[label] / sum(exponents))
            right += int(row.argmax()) == label
            tokens += 1
        found.append((nats, tokens, right))
    return found


def check_equal(found: Sequence[RowLoss], model: Any, items: Sequence[Example], rel: float) -> None:
    """Compare a measurement with the plain loop, to a relative difference."""
    expected = plain_loop(model, items)
    assert [one.nats for one in found] == pytest.approx([nats for nats, _, _ in expected], rel=rel)
    assert [(one.tokens, one.right) for one in found] == [tuple(rest) for _, *rest in expected]


def ignore(*_: int) -> None:
    """Progress that nobody looks at."""


@pytest.mark.parametrize("way", DATA)
def test_each_row_has_the_loss_of_a_plain_loop(
    way: str, llama: Any, t5: Any, tmp_path: Path
) -> None:
    """Batched and padded, in float32, nats are those of each row alone to a millionth."""
    model, seq2seq = (t5, True) if way == "seq2seq" else (llama, False)
    items = examples(scored_run(tmp_path, way), seq2seq=seq2seq)
    found = measure_rows(model, make_tokenizer(), items, on_progress=ignore)

    check_equal(found, model, items, rel=1e-6)


def test_in_float64_the_loss_is_exact(tmp_path: Path) -> None:
    """A model in float64 is not rounded to float32 on the way, nor are its sums."""
    from transformers import AutoModelForCausalLM

    directory = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float64).eval()
    items = examples(scored_run(tmp_path))
    found = measure_rows(model, make_tokenizer(), items, on_progress=ignore)

    check_equal(found, model, items, rel=1e-9)


def test_many_targets_go_through_the_head_in_stretches(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are too large at once are made in parts, with the same losses."""
    items = examples(scored_run(tmp_path, "text"))
    in_parts = partial(target_losses, chunk_bytes=320 * 4 * 7)
    monkeypatch.setattr(held_out_loss, "target_losses", in_parts)
    found = measure_rows(llama, make_tokenizer(), items, on_progress=ignore)

    check_equal(found, llama, items, rel=1e-6)


def test_the_end_token_counts_in_nats_per_token_and_not_in_bits_per_byte(
    llama: Any, tmp_path: Path
) -> None:
    """Of a tokenizer of single bytes an answer's text has a token less than its targets."""
    items = examples(scored_run(tmp_path))
    found = measure_rows(llama, make_tokenizer(), items, on_progress=ignore)

    for one, item in zip(found, items, strict=True):
        assert one.bytes == one.tokens - 1 == len(item.completion.encode())
        assert one.nats is not None
        assert one.text_nats is not None
        with torch.no_grad():
            logits = llama(input_ids=torch.tensor([item.input_ids])).logits[0, -2]
        end = -float(logits.double().log_softmax(-1)[item.labels[-1]])
        assert one.nats - one.text_nats == pytest.approx(end, rel=1e-5)


@pytest.mark.parametrize("way", DATA)
def test_a_run_that_names_no_table_is_scored_by_its_loss(
    way: str, llama: Any, t5: Any, tmp_path: Path
) -> None:
    """Nats per token over all rows stand in the result, and a conversation is one document."""
    config = scored_run(tmp_path, way)
    model = t5 if way == "seq2seq" else llama
    result = evaluate.run(
        tmp_path, config, model, make_tokenizer(), stage="before", on_progress=ignore
    )
    written = json.loads((tmp_path / "eval-before.json").read_text(encoding="utf-8"))
    expected = plain_loop(model, examples(config, seq2seq=way == "seq2seq"))
    loss = written["loss"]

    assert config.eval is None
    assert loss["documents"] == result.n == 9
    nats = sum(one[0] for one in expected) / sum(one[1] for one in expected)
    figures = loss["figures"]
    assert figures["nats_per_token"]["value"] == pytest.approx(nats, rel=1e-6)
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(nats), rel=1e-5)
    assert loss["tokens"] == sum(one[1] for one in expected)


def test_every_kind_has_the_loss_of_the_rows_that_it_scored(llama: Any, tmp_path: Path) -> None:
    """Label scoring of five rows says the loss on those five, with the change after training."""
    labels = ["negative", "neutral", "positive"]
    config = scored_run(tmp_path, kind="label", labels=labels, rows=5)
    for stage in ("before", "after"):
        found = evaluate.run(
            tmp_path, config, llama, make_tokenizer(), stage=stage, on_progress=ignore
        )

    assert found.loss is not None
    scored = {one["row"] for one in found.details["documents"]}
    assert set(found.loss["rows"]["row"]) == scored
    assert len(scored) == 5
    assert found.loss["change"]["nats_per_token"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_lower_loss_is_better(llama: Any, tmp_path: Path) -> None:
    """The change of a loss has its interval below zero where the model became better."""
    config = scored_run(tmp_path, kind="loss")
    evaluate.run(tmp_path, config, llama, make_tokenizer(), stage="before", on_progress=ignore)
    better, items = copy.deepcopy(llama), examples(config)
    optimizer = torch.optim.Adam(better.parameters(), lr=1e-2)
    for _ in range(3):
        for item in items:
            ids, labels = torch.tensor([item.input_ids]), torch.tensor([item.labels])
            better(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = evaluate.run(
        tmp_path, config, better, make_tokenizer(), stage="after", on_progress=ignore
    )

    assert after.better == "lower"
    assert after.details["gain"]["high"] < 0
    assert after.loss is not None
    assert after.loss["change"]["token_accuracy"]["value"] > 0


def test_few_shot_has_a_likelihood_too(llama: Any, tmp_path: Path) -> None:
    """With `eval.shots` the base's loss behind a learnt row stands beside its loss alone."""
    config = scored_run(tmp_path, kind="loss", shots=1)
    found = evaluate.run(
        tmp_path, config, llama, make_tokenizer(), stage="before", on_progress=ignore
    )
    few_shot = found.details["baselines"]["few_shot"]
    rows = examples(config)
    possible = []
    for shown in rows:  # which one is shown is decided elsewhere; it must be one of them
        nats = 0.0
        for item in rows:
            before = make_tokenizer()(f"{shown.prompt}{shown.completion}\n\n")["input_ids"]
            ids = (*before, *item.input_ids)
            with torch.no_grad():
                shares = llama(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            begin = len(before) + item.prompt_length
            nats -= sum(float(shares[at - 1, ids[at]]) for at in range(begin, len(ids)))
        possible.append(nats / found.loss["tokens"] if found.loss else 0.0)

    assert few_shot["rows"] == few_shot["fewest"] == 1
    assert few_shot["figures"] == few_shot["loss"]
    value = few_shot["loss"]["nats_per_token"]["value"]
    assert min(abs(value / one - 1) for one in possible) < 1e-5
