"""Every step demands the same bits of torch, and says so where a base cannot give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import Rig, outcome, rig

from trainer.job import prepare
from trainer.saving.state import digest

TRAIN = {"steps": 4, "batch_size": 4, "micro_batch": 2}


def lenient() -> bool:
    """Tell whether torch would now only warn of an operation whose bits differ from run to run."""
    return torch.is_deterministic_algorithms_warn_only_enabled()


def watch(made: Rig, seen: list[tuple[str, bool]]) -> None:
    """Note how strict torch is in every forward pass and in every backward pass."""
    head = made.context.model.get_output_embeddings()

    def forwards(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        seen.append(("forward", lenient()))
        if output.requires_grad:
            node: Any = output.grad_fn
            node.register_prehook(lambda _gradient: seen.append(("backward", lenient())))

    head.register_forward_hook(forwards)


def test_attention_is_held_to_one_order_of_summing_in_both_passes(tmp_path: Path) -> None:
    """While torch only warns, its fast attentions sum gradients in any order, so it must refuse."""
    made = rig(tiny.make_run(tmp_path, rows=20, train=TRAIN))
    seen: list[tuple[str, bool]] = []
    watch(made, seen)
    made.train(until=1)

    assert seen == [("forward", False), ("backward", False)] * 2
    assert torch.are_deterministic_algorithms_enabled()
    assert lenient()  # what is not trained with may go on with a warning


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_a_base_that_has_no_fixed_order_is_trained_and_called_inexact(tmp_path: Path) -> None:
    """An operation that torch refuses costs the promise, which is said, and not the run."""
    made = rig(tiny.make_run(tmp_path / "a", rows=20, train=TRAIN))
    made.train(until=1)
    head = made.context.model.get_output_embeddings()

    def scatter(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        unit = torch.ones(1).put_(torch.tensor([0]), torch.ones(1))  # any order, says torch
        return output * unit

    head.register_forward_hook(scatter)
    made.train(until=4)
    plain = rig(tiny.make_run(tmp_path / "b", rows=20, train=TRAIN))
    plain.train(until=4)

    assert outcome(made) == outcome(plain)  # the step was given up and done again
    assert made.state.counters.inexact_from == 2
    output = [line for line in made.messages if "not bit for bit from step 2" in line]
    assert len(output) == 1
    assert "put_" in output[0]
    assert digest(made.state.parameters) == digest(plain.state.parameters)


def test_a_gpu_is_the_same_hardware_in_a_machine_with_more_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cards of a model come in machines of several sizes, and only the card computes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")

    assert prepare._hardware(cuda, 4) == prepare._hardware(cuda, 8)
    assert prepare._hardware(cuda, 4)["gpu"] == "Tesla T4"
    assert prepare._hardware(cpu, 4) != prepare._hardware(cpu, 8)
