"""What the proof for a CUDA card tells of kernels and of other trainers, beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import kernels, one_by_one, peers
from gpu.acts import train
from gpu.checks import attempt
from gpu.comparisons import compare, examine
from gpu.comparisons import one_by_one as one_by_one_lines
from gpu.lines import Figure, Result
from gpu.running import Ended
from gpu.watched import Notes, label, only_kernels
from support import tiny
from support.cards import JOB, KERNELS, Played, place

from trainer.config import TrainTable
from trainer.device.unpacked import LayerValues, UnpackedBase
from trainer.job import faster_on_cpu, use_kernels
from trainer.kernels import choose, geglu, swiglu
from trainer.kernels.geglu import GeGlu
from trainer.kernels.kernel_set import Card, KernelSet
from trainer.kernels.linear_4bit import BaseLinear4bit
from trainer.kernels.swiglu import SwiGlu

THEIRS = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, by PEFT and TRL
DIED = Ended(code=-6, seconds=9, error="CUDA error: an illegal memory access")


@dataclass(kw_only=True)
class Counted:
    """A kernel that computes nothing faster, and counts the passes it is switched on for."""

    name: str
    version: str = "1"
    problem: str | None = None
    reason: str | None = None
    raises: Exception | None = None
    passes: int = 0
    proofs: list[Card] = field(default_factory=list)

    def unsuitable(self, model: Any, card: Card) -> str | None:  # noqa: ARG002
        """Give the reason that the test chose."""
        return self.reason

    def prove(self, card: Card) -> str | None:
        """Give the problem that the test chose."""
        self.proofs.append(card)
        if self.raises is not None:
            raise self.raises
        return self.problem

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Find one place."""
        return 1

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:  # noqa: ARG002
        """Count the pass."""
        self.passes += 1
        yield


def test_the_comparison_tells_both_speeds(tmp_path: Path) -> None:
    """Beside the speed of another trainer stands how ours compares, if ours was measured."""
    here = place(tmp_path, Played())
    before = compare(here, JOB)
    train(here, JOB, alone=True)
    after = compare(here, JOB)

    assert [line.what for line in after] == [f"1b bf16: {name}" for name in peers.PEERS]
    assert "times as fast" not in before[0].message
    assert after[1].figures["tokens_per_s"].value == 25
    assert after[1].message == (
        "6 steps, mean loss 0.500 and ours 0.408, ours is 2.00 times as fast, "
        "ours takes 1.00 times its memory"
    )


def test_a_trainer_that_is_missing_or_fails_is_named_and_the_others_are_compared(
    tmp_path: Path,
) -> None:
    """What a Python lacks is not run, an error is the peer's, and a death keeps what was before."""

    def die(command: str) -> Ended | None:
        if "gpu.peers" not in command:
            return None
        path = Path(command.split()[1])
        path.write_text(json.dumps({"Trainer": {"missing": ["a", "b"]}, "TRL": {"error": "No"}}))
        return DIED

    lines = compare(place(tmp_path, Played(faults=die)), JOB)

    assert [(line.result, line.error) for line in lines] == [
        (Result.NOT_RUN, "this Python lacks a, b"),
        (Result.FAILED, "No"),
        (Result.FAILED, "ended by SIGABRT: CUDA error: an illegal memory access"),
    ]


def test_what_was_seen_of_a_card_before_it_broke_counts(tmp_path: Path) -> None:
    """A kernel that ends the process ends only what comes after it."""

    def die(command: str) -> Ended | None:
        lines = [
            {"what": "kernel norm:1: bf16", "result": "done", "figures": {}},
            {"what": "kernel norm:1: fp16", "result": "FAILED", "figures": {}},
            {"what": "kernel product:1: bf16", "result": "done", "figures": {}},
        ]
        Path(command.split()[1]).write_text(json.dumps(lines))
        return DIED

    lines = examine(place(tmp_path, Played(faults=die)), JOB)
    whole = examine(place(tmp_path, Played()), JOB)

    assert [line.result for line in lines] == [
        Result.DONE, Result.FAILED, Result.DONE, Result.FAILED,
    ]  # fmt: skip
    assert kernels.proved(lines) == ["product:1"]
    assert kernels.proved(whole) == [*KERNELS]


def test_each_kernel_is_compared_with_none(tmp_path: Path) -> None:
    """A line for each set of kernels says how many times as fast it is."""
    lines = one_by_one_lines(place(tmp_path, Played()), JOB)

    assert [line.what.rpartition(": ")[2] for line in lines] == ["none", "norm:1", "all"]
    assert [line.message for line in lines] == [
        "", "1.50 times as fast as without", "2.00 times as fast as without: norm:1",
    ]  # fmt: skip
    assert lines[2].figures["tokens_per_s"] == Figure(value=20, unit="tokens/s")


@THEIRS
@pytest.mark.parametrize(
    ("kernel", "result", "text"),
    [
        (Counted(name="k"), Result.DONE, "equal within its bound, the same bits each time"),
        (Counted(name="k", problem="it differs"), Result.FAILED, "it differs"),
        (Counted(name="k", raises=ValueError("no")), Result.FAILED, "ValueError: no"),
        (Counted(name="k", problem="no", reason="needs sm_80"), Result.NOT_RUN, "needs sm_80"),
        (Counted(name="k", reason="no LoRA"), Result.DONE, "equal within its bound"),
    ],
)
def test_a_kernel_is_proved_several_times_and_for_inexact_runs_too(
    monkeypatch: pytest.MonkeyPatch, kernel: Counted, result: Result, text: str
) -> None:
    """A difference is a failure, except where the kernel itself says that it does not suit."""
    monkeypatch.setattr(choose, "candidates", lambda _table: [kernel])
    ((what, check),) = kernels.kernel_checks("cpu")
    line = attempt(what, check)

    assert (line.what, line.result) == ("kernel k:1: fp32", result)
    assert (line.error or line.message).startswith(text)
    if result is Result.DONE:
        assert [card.exact for card in kernel.proofs] == [True] * kernels.PROOFS + [False]


def test_a_card_that_broke_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error of the card nothing that follows in that process could be believed."""
    broken = Counted(name="k", raises=torch.AcceleratorError("an illegal memory access"))
    monkeypatch.setattr(choose, "candidates", lambda _table: [broken])
    ((_, check),) = kernels.kernel_checks("cpu")

    with pytest.raises(torch.AcceleratorError):
        check()


def zeros(_values: LayerValues) -> torch.Tensor:
    """Return what is no weight."""
    return torch.zeros(384, 256)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (BaseLinear4bit(), "y of a 4-bit product of 1 tokens"),
        (GeGlu(lambda: swiglu.PLAIN), "h of GeGLU 1x64"),
        (SwiGlu(lambda: geglu.PLAIN), "h of SwiGLU 1x64"),
    ],
)
def test_a_wrong_kernel_fails_the_examination(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, what: str
) -> None:
    """It is not taken for one that does not suit: the model that is asked has a place for it."""
    monkeypatch.setattr(LayerValues, "get", zeros)
    fine, message, _ = kernels.proofs(wrong, "cpu", torch.float32)

    assert not fine
    assert message.startswith(what)


@pytest.mark.parametrize(
    ("wanted", "used"), [("all", ["a:1", "b:1"]), ("none", []), ("b:1", ["b:1"]), ("other", [])]
)
def test_a_watched_training_uses_the_wanted_kernels_only(
    monkeypatch: pytest.MonkeyPatch, wanted: str, used: list[str]
) -> None:
    """The trainer chooses among those, and what it chose is noted."""
    monkeypatch.setattr(choose, "find_model_difference", lambda *_: None)  # there is no model
    found = [Counted(name="a"), Counted(name="b")]
    monkeypatch.setattr(choose, "candidates", lambda _table: found)
    monkeypatch.setattr(use_kernels, "choose_kernels", choose.choose_kernels)
    notes = Notes()
    only_kernels(notes, wanted)
    card = Card(device=torch.device("cuda"), capability=(8, 0), dtype=torch.bfloat16)
    choose_kernels: Any = getattr(use_kernels, "choose_kernels")  # noqa: B009 - as replaced
    chosen = choose_kernels(None, card, TrainTable(), lambda _text: None)

    assert [label(kernel) for kernel in chosen.kernels] == used
    assert notes.kernels == used


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training stores for later starts lies in the folder of the test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model."""
    return tiny.make_run(
        tmp_path_factory.mktemp("peers"), rows=20, method={"kind": "qlora"},
        train={"steps": 9, "batch_size": 4, "micro_batch": 2, "precision": "fp32"},
    )  # fmt: skip


def test_sets_of_kernels_do_the_steps_of_the_real_loop(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, with each alone and with all, every micro-batch is computed with those wanted."""
    monkeypatch.setattr(choose, "find_model_difference", lambda *_: None)  # its passes count, too
    found = [Counted(name="a"), Counted(name="b"), Counted(name="c", reason="not here")]
    monkeypatch.setattr(choose, "candidates", lambda _table: found)
    one_by_one.main([str(tmp_path / "notes.json"), str(run_dir)])
    notes = json.loads((tmp_path / "notes.json").read_text())
    each = (one_by_one.WARM_UP + one_by_one.TIMED) * 2  # of two micro-batches

    assert {name: [*one["kernels"]] for name, one in notes.items()} == {
        "none": [], "a:1": ["a:1"], "b:1": ["b:1"], "all": ["a:1", "b:1"],
    }  # fmt: skip
    assert [kernel.passes for kernel in found] == [2 * each, 2 * each, 0]
    assert all(one["tokens_per_s"] > 0 for one in notes.values())


def test_the_values_of_the_base_are_kept_once_and_given_back(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a kernel computes 4-bit layers, all kernels are measured with kept values as well."""
    monkeypatch.setattr(faster_on_cpu, "keep_unpacked", lambda *_, **__: None)
    monkeypatch.setattr(choose, "candidates", lambda _table: [BaseLinear4bit()])
    one_by_one.main([str(tmp_path / "notes.json"), str(run_dir)])
    notes = json.loads((tmp_path / "notes.json").read_text())

    assert [*notes] == ["none", "all", "all, base unpacked"]
    assert [one["unpacked_bytes"] > 0 for one in notes.values()] == [False, False, True]
    assert notes["all, base unpacked"]["kernels"] == ["linear_4bit:unpacked-1"]


@pytest.mark.parametrize("is_released", [False, True])
def test_a_watched_training_notes_whether_the_base_stays_unpacked(
    monkeypatch: pytest.MonkeyPatch, *, is_released: bool
) -> None:
    """The forecast counts values that were kept to the end, and not those that were given back."""
    for module, name in (
        (use_kernels, "keep_unpacked"), (use_kernels, "choose_kernels"), (choose, "candidates"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    monkeypatch.setattr(use_kernels, "keep_unpacked", lambda *_, **__: UnpackedBase([]))
    notes = Notes()
    only_kernels(notes, "all")
    kernels = KernelSet(kernels=(BaseLinear4bit(),))
    kept = use_kernels.keep_values(kernels, torch.device("cpu"), lambda _text: None)
    assert kept is not None
    if is_released:
        kept.release()

    assert notes.unpacked is not is_released


@THEIRS
def test_other_trainers_train_the_rows_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    """Trainer and TRL do the same steps on the same rows, with equal losses from fresh adapters."""
    peers.main([str(tmp_path / "notes.json"), str(run_dir), "Trainer", "TRL"])
    notes = json.loads((tmp_path / "notes.json").read_text())
    first, second = notes["Trainer"], notes["TRL"]

    assert [one["step"] for one in first["steps"]] == [*range(1, 10)]
    assert [one["tokens"] for one in first["steps"]] == [one["tokens"] for one in second["steps"]]
    assert first["peak_allocated_bytes"] is None
    assert second["loss"] == pytest.approx(first["loss"], rel=0.02)
