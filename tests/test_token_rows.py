"""On a processor, products over a batch leave its padding out, and no bit of a step differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import make
from support.mixtures import make_mixture
from support.rig import Rig, outcome, rig, twin_of

from trainer.device.token_rows import (
    ROWS_MIN,
    RowWatch,
    TokenRows,
    pads_only_past_tokens,
    rows_stand_alone,
)
from trainer.job import faster_on_cpu
from trainer.kernels.lora_over_rows import is_exact

THREADS = {"llama": 2, "phi": 1, "falcon": 2}
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
CASES = [
    ("llama", {"kind": "qlora"}),
    ("llama", {"kind": "qlora", "alpha": 3}),  # a factor that rounds
    ("llama", {"kind": "qlora", "dropout": 0.2}),
    ("llama", {"kind": "qlora", "targets": ["q_proj", "down_proj"]}),
    ("llama", {"kind": "rslora", "quant": "nf4"}),
    ("llama", {"kind": "qdylora"}),  # with hooks on its matrices
    ("llama", {"kind": "qdora"}),
    ("phi", {"kind": "qlora"}),  # with biases
    ("falcon", {"kind": "qlora"}),
]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens of all that is put back among padding."""
    found: list[int] = []
    own = TokenRows.put

    def noted(rows: TokenRows, room: torch.Tensor) -> torch.Tensor:
        found.append(rows.count)
        return own(rows, room)

    monkeypatch.setattr(TokenRows, "put", noted)
    return found


def write_run(tmp_path: Path, method: dict[str, Any], **train: Any) -> Path:
    """Lay out a run of rows whose lengths differ, with exactly this method."""
    config = tiny.make_config(
        tmp_path / "model",
        tiny.make_rows(tmp_path / "train.jsonl", 12),
        train={"steps": 3, "batch_size": 6, "group_by_length": False, **train},
    )
    table = {"r": 4, "dropout": 0.0, "alpha": 8, **method}
    return tiny.write_config(tmp_path / "run", {**config, "method": table})


def plain_twin(made: Rig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The same training, whose products are of all places of a batch."""
    monkeypatch.setattr(faster_on_cpu, "leave_padding_out", lambda *_arguments: 0)
    return rig(twin_of(made, directory))


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_no_bit_differs_without_padding(
    tmp_path: Path,
    kind: str,
    method: dict[str, Any],
    put: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses, gradient norms, adapter and moments are those of products of the whole batch."""
    make(kind, tmp_path / "model")
    made = rig(write_run(tmp_path, method, threads=THREADS[kind]))
    made.train(until=3)
    done = len(put)
    plain = plain_twin(made, tmp_path / "plain", monkeypatch)
    plain.train(until=3)

    assert outcome(made) == outcome(plain)
    assert done > 0
    assert min(put) >= ROWS_MIN
    assert len(put) == done


def test_activations_that_are_computed_again_have_the_same_bits(
    tmp_path: Path, put: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradient checkpointing, the second forward pass leaves out the same padding."""
    make("llama", tmp_path / "model")
    made = rig(write_run(tmp_path, {"kind": "qlora"}, gradient_checkpointing=True))
    made.train(until=2)
    done = len(put)
    plain = plain_twin(made, tmp_path / "plain", monkeypatch)
    plain.train(until=2)

    assert outcome(made) == outcome(plain)
    assert done > 0


def test_padding_stays_where_it_might_reach_a_token(tmp_path: Path) -> None:
    """Experts, an encoder and a convolution are left alone; a plain decoder is not."""
    import transformers

    make_mixture(tmp_path / "mixture")
    make("flan-t5", tmp_path / "t5")
    make("llama", tmp_path / "llama")
    mixture = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mixture")
    encoder = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5")
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")

    assert pads_only_past_tokens(llama)
    assert not pads_only_past_tokens(mixture)
    assert not pads_only_past_tokens(encoder)
    llama.convolution = torch.nn.Conv1d(2, 2, 2)
    assert not pads_only_past_tokens(llama)


def test_a_library_whose_rows_do_not_stand_alone_computes_all(
    tmp_path: Path, put: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If fewer rows give other bits, no padding is left out."""
    own = TokenRows.product

    def other(rows: TokenRows, *arguments: Any) -> torch.Tensor:
        return own(rows, *arguments) * (1 + 2**-20)

    monkeypatch.setattr(TokenRows, "product", other)
    rows_stand_alone.cache_clear()
    try:
        make("llama", tmp_path / "model")
        made = rig(write_run(tmp_path, {"kind": "qlora"}))
        made.train(until=1)
    finally:
        rows_stand_alone.cache_clear()

    assert put == []


def test_tokens_are_taken_and_put_back() -> None:
    """Zeros are at padding; a tensor that was changed in place is taken anew."""
    rows = TokenRows(MASK)
    x = torch.arange(12.0).reshape(2, 3, 2)
    taken = rows.take_shared(x)

    assert taken.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rows.take_shared(x) is taken
    back = rows.put(rows.product(taken, torch.eye(2)))
    assert back.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [0, 0], [0, 0]]]
    assert not back._is_view()
    x.add_(1)
    assert rows.take_shared(x).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert rows.fit(x)
    assert not rows.fit(x[:, :2])
    assert not rows.fit(x[0])


def test_a_batch_is_left_whole_where_little_is_spared() -> None:
    """Few tokens, hardly any padding, no mask, or no gradients: all places are computed."""
    watch, model = RowWatch(), torch.nn.Identity()
    model.forward = lambda **named: named["attention_mask"]  # type: ignore[method-assign]
    watch.watch(model)
    mask = torch.ones(4, 50, dtype=torch.long)
    mask[2:, 30:] = 0
    x = torch.ones(4, 50, 3)

    model(attention_mask=mask)
    assert watch.rows_of(x) is not None
    assert watch.rows_of(x.double()) is None
    with torch.no_grad():
        assert watch.rows_of(x) is None
        model(attention_mask=mask)
    assert watch.rows_of(x) is None
    for other in (torch.ones_like(mask), mask[:, :9], None):
        model(attention_mask=other)
        assert watch.rows is None


def test_some_factors_never_round() -> None:
    """Powers of two from 1 on may be multiplied into either side of a product."""
    found = [is_exact(one) for one in (1, 2.0, 16.0, 0.5, 3.0, 0.75, 2**0.5)]

    assert found == [True, True, True, False, False, False, False]
