"""Every method resumes to the same bits, and plain PEFT gives the logits of what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import fresh_base, logits, plain_peft
from support.rig import Rig, outcome, restored, rig, twin_of

from trainer import model as models
from trainer.adapters import methods
from trainer.errors import ConfigError
from trainer.method_table import MethodKind, MethodTable, Quant
from trainer.results.export import export

STEPS = 6
TOLERANCE = 1e-5  # of logits around 1: float32 sums in another order
CHOICES: tuple[dict[str, Any], ...] = (
    {"kind": "lora"},
    {"kind": "qlora", "quant": "fp4", "double_quant": False},
    {"kind": "qlora", "quant": "int8"},
    {"kind": "dora"},
    {"kind": "qdora"},
    {"kind": "rslora"},
    {"kind": "rslora", "quant": "nf4"},
    {"kind": "dylora"},
    {"kind": "qdylora", "optimizer": "adamw8bit"},
    {"kind": "nola", "bases": 40},
    {"kind": "nola", "bases": 40, "quant": "nf4"},
)


def name_of(choice: dict[str, Any]) -> str:
    """Spell a choice as a test's name."""
    return "-".join(str(choice[key]) for key in ("kind", "quant") if key in choice)


@pytest.fixture(scope="module", params=CHOICES, ids=name_of)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a finished training of one method: dropout 0.1, two passes per step."""
    made = rig(
        tiny.make_run(
            tmp_path_factory.mktemp("trained"),
            rows=20,
            method={"dropout": 0.1, **request.param},
            train={"steps": STEPS, "micro_batch": 2},
        )
    )
    made.train(until=STEPS)
    return made


def test_interrupted_in_the_middle_gives_the_same_bits(trained: Rig, tmp_path: Path) -> None:
    """Stopped after half the steps and restored: log, parameters and moments are equal."""
    run = twin_of(trained, tmp_path)
    first = rig(run)
    first.train(until=STEPS // 2)
    first.save()
    second = restored(run)
    second.train(until=STEPS)

    assert outcome(trained) == outcome(second)


def test_plain_peft_gives_the_logits_of_the_trained_model(trained: Rig, tmp_path: Path) -> None:
    """What is exported loads with PEFT alone, and computes what was trained."""
    method = methods.method_of(trained.context.model)
    method.materialize()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    method.save(adapter)
    export(adapter, tmp_path / "plain")
    loaded = plain_peft(trained, tmp_path / "plain")
    again = models.load_adapter(fresh_base(trained), adapter)
    expected = logits(trained.context.model, trained)

    torch.testing.assert_close(logits(loaded, trained), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits(again, trained), expected, rtol=0, atol=TOLERANCE)
    with loaded.disable_adapter():
        assert (logits(loaded, trained) - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", list(MethodKind))
def test_storage_follows_the_kind(kind: MethodKind) -> None:
    """Without a word about it, the q kinds store nf4 and the others leave the base as it is."""
    expected = Quant.NF4 if kind in {"qlora", "qdora", "qdylora"} else Quant.NONE

    assert MethodTable(kind=kind).storage is expected


@pytest.mark.parametrize(
    ("table", "messages"),
    [
        ({"kind": "dora", "quant": "nf4"}, "did you mean `kind: qdora`"),
        ({"kind": "qdylora", "quant": "none"}, "did you mean `kind: dylora`"),
        ({"kind": "qdora", "quant": "int8"}, "nf4` or `fp4"),
        ({"kind": "qlora", "bases": 9}, "`bases` belongs to `kind: nola`"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(table: dict[str, Any], messages: str) -> None:
    """A kind, a storage and a field that do not go together say what does."""
    with pytest.raises(ValueError, match=messages):
        MethodTable.model_validate(table)


def test_a_paged_optimizer_is_refused_where_nothing_can_be_paged(tmp_path: Path) -> None:
    """On a CPU the paged optimizer is refused before the base is loaded, with what to use."""
    run = tiny.make_run(tmp_path, rows=4, method={"optimizer": "paged_adamw8bit"})

    with pytest.raises(ConfigError, match=r"needs a GPU.*use adamw8bit"):
        rig(run)


def test_the_price_of_dora_is_reported_once_and_before(tmp_path: Path) -> None:
    """Whoever chooses QDoRA reads what it costs; whoever chooses LoRA reads nothing."""
    made = rig(tiny.make_run(tmp_path / "a", rows=4, method={"kind": "qdora"}))
    plain = rig(tiny.make_run(tmp_path / "b", rows=4))
    costs = [line for line in made.messages if "26 %" in line]

    assert len(costs) == 1
    assert [line for line in made.messages if "unpacked in every forward pass" in line]
    assert not [line for line in plain.messages if "expect" in line]


def test_rank_stabilised_means_divided_by_the_root(tmp_path: Path) -> None:
    """RsLoRA scales by alpha/sqrt(r), LoRA by alpha/r."""
    scales = []
    for kind in ("lora", "rslora"):
        made = rig(tiny.make_run(tmp_path / kind, rows=4, method={"kind": kind, "r": 4}))
        scales += [
            {module.scaling["default"] for module in made.context.model.modules()
             if hasattr(module, "lora_A")}
        ]  # fmt: skip

    assert scales == [{8 / 4}, {8 / 2}]
