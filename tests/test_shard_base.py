"""A sharded base gives the bits of a whole one, and each rank holds its part of it only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.shard_rank import compare_ranks

from trainer.config import PrecisionChoice
from trainer.errors import ConfigError
from trainer.estimate.cards import sharding_problem
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import MethodTable

QLORA = {"kind": "qlora", "r": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of three blocks."""
    return tiny.make_model(tmp_path_factory.mktemp("base") / "model", hidden=64, layers=3)


@pytest.mark.parametrize(
    ("size", "request_"),
    [
        (2, {"method": QLORA}),
        (2, {"method": QLORA, "checkpointing": True, "offloading": True}),
        (3, {"method": {**QLORA, "double_quant": False}, "checkpointing": True}),
    ],
    ids=["plain", "recomputed and moved to the host", "three ranks, plain scales"],
)
def test_every_result_has_the_bits_of_the_whole_base(
    model: Path, tmp_path: Path, size: int, request_: dict[str, Any]
) -> None:
    """Logits, loss, all gradients of the adapter and written answers are equal, bit for bit."""
    ranks = compare_ranks(model, tmp_path, size, **request_)

    assert [one["different"] for one in ranks] == [[]] * size
    assert {one["gradients"] for one in ranks} == {42}
    assert [one["without"] for one in ranks] == [[]] * size
    assert [one["alone"] for one in ranks] == [True, *[None] * (size - 1)]


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_holds_its_part(model: Path, tmp_path: Path, size: int) -> None:
    """Packed bytes and scales on a rank are 1/G of the whole and a tenth more at most.

    The values of sharded layers are never kept unpacked.
    """
    for one in compare_ranks(model, tmp_path, size, method=QLORA):
        whole = one["whole_bytes"] + one["scales_bytes"]

        assert one["local_bytes"] + one["scales_bytes"] <= whole * (1 / size + 0.1)
        assert one["unpackable"] == [21, 0]


@pytest.mark.parametrize(("size", "tokens", "rows"), [(2, 96, 2), (3, 64, 2)])
def test_the_estimate_is_within_a_twentieth(
    tmp_path: Path, size: int, tokens: int, rows: int
) -> None:
    """The peak of a pass on a sharded base is what the formula says, with and without its rest."""
    base = tiny.make_model(tmp_path / "model", hidden=768, layers=6)
    config = json.loads((base / "config.json").read_text())
    found = compare_ranks(
        base, tmp_path, size,
        method={"kind": "qlora", "r": 8}, tokens=tokens, rows=rows, checkpointing=True,
    )[0]  # fmt: skip
    setup = TrainingSetup(
        tokens=tokens, micro_batch=rows, r=8, precision=PrecisionChoice.FP32,
        checkpointing=True, cards=size, sharded=True,
    )  # fmt: skip
    need = estimate(config, setup)
    trained = found["trained"]
    beside = trained * (8 + 4 * (2 + 1 / size))  # moments and exchange, which a pass has not

    assert need.base + 8 * trained == pytest.approx(found["static"], rel=0.05)
    assert need.allocated - beside == pytest.approx(found["peak"], rel=0.05)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "qlora", "quant": "int8"}, "method.quant: a base in `int8` cannot be sharded"),
        ({"kind": "lora"}, "method.quant: a base in `none` cannot be sharded"),
        ({"kind": "qdora"}, "method.kind: `qdora` reads weights of the base"),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_what_can(table: dict[str, Any], words: str) -> None:
    """The refusal names the setting, and what to take instead."""
    problem = sharding_problem(MethodTable.model_validate(table))

    assert problem.startswith(words)
    assert problem.endswith("take a card that holds it whole")


def test_a_base_without_packed_layers_is_refused(model: Path) -> None:
    """It has no block that could be shared."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.group.shard import Gathers, await_all, shard_base

    plain = AutoModelForCausalLM.from_pretrained(str(model))
    group: Any = None  # it is refused before anything is sent
    with pytest.raises(ConfigError, match="has no blocks with 4-bit layers"):
        shard_base(plain, group, Gathers(group, await_all), device=torch.device("cpu"))
