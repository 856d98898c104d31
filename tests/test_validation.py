"""Validation disturbs nothing, survives every interruption, and decides what is delivered."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import tiny
from support.rig import FACTS, Rig, outcome, outcome_tensors, restored, rig, stopped, twin_of

from trainer.__main__ import main
from trainer.config import CheckpointTable, TrainerConfig, load_config
from trainer.errors import Preempted
from trainer.rundir.fingerprint import compare, flatten_config
from trainer.rundir.layout import training_facts
from trainer.saving.async_saver import AsyncSaver
from trainer.saving.checkpointer import Checkpointer
from trainer.saving.manifest import Damaged
from trainer.saving.state import digest
from trainer.tracking.tensorboard import TensorBoard
from trainer.training.loop import train

STEPS = 11  # validated after 3, 6, 9 and, being the end, 11
HARD: dict[str, Any] = {"steps": STEPS, "batch_size": 4, "micro_batch": 2, "lr": 3e-2}


def lay_out(directory: Path, *, method: dict[str, Any] | None = None, **train: Any) -> Path:
    """Make a run with five held-out rows whose moods are not those of the training rows."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = tiny.make_rows(directory / "eval.jsonl", 9)
    lines = rows.read_text().splitlines()[4:]
    rows.write_text("\n".join(lines).replace("neutral", "positive") + "\n")
    return tiny.make_run(
        directory,
        rows=20,
        data={"eval": str(rows)},
        train={**HARD, **train},
        method=method or {},
    )


def everything(made: Rig) -> tuple[Any, ...]:
    """Return all bits of a state, the best adapter and how validation went included."""
    best = {k: v.numpy().tobytes() for k, v in made.state.best_adapter.items()}
    return (*outcome(made), best, made.state.best)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a finished run that validated every third step."""
    made = rig(lay_out(tmp_path_factory.mktemp("undisturbed"), validate_every=3))
    made.train(until=STEPS)
    return made


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "lora"},
        {"kind": "qlora"},
        {"kind": "qlora", "quant": "int8"},
        {"kind": "dora"},
        {"kind": "dylora"},
        {"kind": "nola", "bases": 40},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_validation_changes_no_bit_of_the_training(tmp_path: Path, method: dict[str, Any]) -> None:
    """Adapter, moments and log are those of a run without validation, whatever the method."""
    plain = rig(lay_out(tmp_path / "plain", method=method))
    plain.train(until=STEPS)
    other = rig(lay_out(tmp_path / "other", method=method, validate_every=2, keep_best=False))
    other.train(until=STEPS)
    lines, *tensors = outcome(other)
    losses = {line["step"]: line.pop("validation_loss") for line in lines if "val" in str(line)}

    assert list(outcome(plain)) == [lines, *tensors]
    assert list(losses) == [2, 4, 6, 8, 10, 11]
    assert len(set(losses.values())) == 6


def test_the_loss_is_the_mean_over_all_held_out_answers(undisturbed: Rig) -> None:
    """The logged figure is that of a pass over one row after the other."""
    import torch

    from trainer.data.codec import NOT_TRAINED
    from trainer.data.examples import collate
    from trainer.loss import summed_cross_entropy

    validation = undisturbed.context.validation
    assert validation is not None
    undisturbed.context.model.eval()
    with torch.no_grad():
        losses = [
            summed_cross_entropy(undisturbed.context.model, collate([item], 3)).item()
            for item in validation.examples
        ]
    undisturbed.context.model.train()
    targets = sum(label != NOT_TRAINED for item in validation.examples for label in item.labels)

    assert len(losses) == 5
    assert undisturbed.state.log.last["validation_loss"] == pytest.approx(sum(losses) / targets)


def test_stopped_at_any_step_the_best_is_the_same(undisturbed: Rig, tmp_path: Path) -> None:
    """Saved and restored after any step, validated or not, log, adapters and best are equal."""
    for _, run in stopped(undisturbed, tmp_path, range(1, STEPS)):
        second = restored(run)
        second.train(until=STEPS)

        assert everything(undisturbed) == everything(second)


@pytest.mark.parametrize("stop", [3, 6, 9, 11])
def test_a_notice_in_the_middle_of_a_validation_costs_nothing(
    undisturbed: Rig, tmp_path: Path, stop: int
) -> None:
    """A validation cut short leaves a whole state; the next start validates it and goes on."""
    run = twin_of(undisturbed, tmp_path)
    first = rig(run)
    hear_notice_in_validation(first, step=stop)
    with pytest.raises(Preempted):
        first.train(until=STEPS)
    first.save()
    cut = tiny.losses(run)[-1]
    second = restored(run)
    hear_notice_in_validation(second, step=stop)
    with pytest.raises(Preempted):  # and once more, before anything else
        second.train(until=STEPS)
    third = restored(run)
    third.train(until=STEPS)

    assert (cut["step"], "validation_loss" in cut) == (stop, False)
    assert everything(undisturbed) == everything(third)


def test_killed_in_the_middle_of_a_validation_the_step_is_done_again(
    undisturbed: Rig, tmp_path: Path
) -> None:
    """Death without notice in a validation goes back to the checkpoint before, to the same bits."""
    run = twin_of(undisturbed, tmp_path)
    first = rig(run)
    first.train(until=4)
    first.save()
    original = first.context.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not first.context.model.training:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    first.context.model.forward = forward
    with pytest.raises(KeyboardInterrupt):
        first.train(until=STEPS)
    second = restored(run)

    assert second.state.counters.step == 4
    second.train(until=STEPS)
    assert everything(undisturbed) == everything(second)


def hear_notice_in_validation(made: Rig, *, step: int) -> None:
    """Raise the flag in the second pass of the validation after `step`."""
    original = made.context.model.forward
    passes = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not made.context.model.training and made.state.counters.step == step:
            passes.append(1)
            if len(passes) == 2:
                made.context.flag.set(seconds_left=30, reason="test")
        return original(*args, **kwargs)

    made.context.model.forward = forward


def test_training_ends_after_validations_without_a_gain(tmp_path: Path) -> None:
    """With patience two the run ends two validations after its best, interrupted or not."""
    whole = rig(lay_out(tmp_path, validate_every=1, stop_after=2, lr=0.3, steps=40))
    whole.train(until=40)
    ended = whole.state.counters.step
    run = twin_of(whole, tmp_path / "twin")
    for stop in range(1, ended + 3):
        made = restored(run)
        made.train(until=stop)
        made.save()

    assert ended < 40
    assert whole.state.best.step == ended - 2
    assert everything(whole) == everything(made)


def test_the_delivered_adapter_is_the_best_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`adapter/` holds the weights of the lowest validation loss; without keep_best the last."""
    trained: dict[str, Any] = {"validate_every": 1, "stop_after": 2, "lr": 0.3, "steps": 40}
    best = lay_out(tmp_path / "best", **trained)
    last = lay_out(tmp_path / "last", **trained, keep_best=False)
    assert [main(["train", "--run-dir", str(run)]) for run in (best, last)] == [0, 0]
    receipt = json.loads((best / "adapter" / "qft.json").read_text())
    lines = tiny.losses(best)
    lowest = min(lines, key=lambda line: line["validation_loss"])
    capsys.readouterr()

    assert lines == tiny.losses(last)
    assert receipt["best"] == {
        "step": lowest["step"],
        "loss": lowest["validation_loss"],
        "since": 2,
    }
    assert tiny.adapter_bytes(best) != tiny.adapter_bytes(last)
    assert digest_of(best) == lowest["params"]
    assert digest_of(last) == lines[-1]["params"]
    assert main(["verify", "--run-dir", str(best), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint_compared"] == lines[-1]["step"]


def digest_of(run: Path) -> str:
    """Return the digest of a delivered adapter, as the log has it."""
    from safetensors.torch import load_file

    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    return digest(dict(sorted(tensors.items())))


def test_verify_finds_another_validation_loss(
    undisturbed: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replay validates too, so a validation loss that was not so is found."""
    run = twin_of(undisturbed, tmp_path)
    lines = [*undisturbed.state.log.to_bytes().splitlines()]
    record = json.loads(lines[5])
    lines[5] = json.dumps({**record, "validation_loss": record["validation_loss"] / 2}).encode()
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code = main(["verify", "--run-dir", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)["first_difference"]

    assert (code, found["step"], found["key"]) == (1, 6, "validation_loss")


def test_the_status_tells_the_last_validation(tmp_path: Path) -> None:
    """`status.json` keeps the news of the last validation in its message, across saves."""
    made = rig(lay_out(tmp_path, validate_every=3))
    checkpointer = Checkpointer(
        state=made.state,
        saver=AsyncSaver(made.store, clock=time.monotonic),
        table=CheckpointTable(every=1),
        band=None,
        fingerprint=FACTS,
        heartbeat=made.heartbeat,
        tracker=TensorBoard(tmp_path / "tb", steps_done=0, wall_s=lambda: 0.0),
        clock=time.monotonic,
        on_message=made.messages.append,
    )
    train(made.context, made.state, checkpointer, until=5)
    checkpointer.save_now()
    loss = tiny.losses(made.run_dir)[2]["validation_loss"]

    expected = f"validation loss {loss} after step 3; best: {loss} after step 3"
    assert made.heartbeat.status.message == expected


def test_a_forged_best_is_refused_before_anything_changes(undisturbed: Rig, tmp_path: Path) -> None:
    """A checkpoint whose best has another shape, or a step that never was, is damaged."""
    made = rig(twin_of(undisturbed, tmp_path))
    good = undisturbed.state.snapshot(FACTS)
    key = next(name for name in good.adapter if name.startswith("best/"))
    before = (outcome_tensors(made), made.state.best, made.state.best_adapter)
    forged = [
        replace(good, adapter={**good.adapter, key: good.adapter[key][:1]}),
        replace(good, state={**good.state, "best": {"step": 99, "loss": 1.0, "since": 0}}),
        replace(good, state={**good.state, "best": {"step": 3, "loss": None, "since": 0}}),
        replace(good, state={**good.state, "best": {"step": 3}}),
    ]
    for snapshot in forged:
        with pytest.raises(Damaged, match="best"):
            made.state.restore(snapshot)

    assert before == (outcome_tensors(made), made.state.best, made.state.best_adapter)


def test_a_loss_that_is_no_number_is_no_gain(undisturbed: Rig, tmp_path: Path) -> None:
    """A validation that overflows counts as one without a gain and keeps nothing."""
    state = rig(twin_of(undisturbed, tmp_path)).state

    assert [state.judge(x, keep=True) for x in (float("nan"), 2.0, 2.0, float("inf"), 1.0)] == [
        False, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "data", "messages"),
    [
        ({"validate_every": 3}, {}, "needs held-out rows"),
        ({"stop_after": 3}, {"eval": "x"}, "say when with `validate_every`"),
    ],
)
def test_validation_that_cannot_be_is_refused(
    train: dict[str, Any], data: dict[str, Any], messages: str
) -> None:
    """No held-out rows, or patience without validations, are faults of the config."""
    table = tiny.make_config(Path("model"), Path("rows"), train=train, data=data)

    with pytest.raises(ValidationError, match=messages):
        TrainerConfig.model_validate(table)


def test_held_out_rows_decide_about_the_adapter_only_if_they_are_looked_at(tmp_path: Path) -> None:
    """With validation other held-out rows are another run; without it not."""
    on = load_config(lay_out(tmp_path / "on", validate_every=2) / "config.json")
    off = load_config(lay_out(tmp_path / "off") / "config.json")
    facts = {"data.train": "a", "data.eval": "b"}
    old, new = ({"config": flatten_config(on), "data": {"data.eval": x}} for x in "bc")

    assert training_facts(on, facts)["data.eval"] == "b"
    assert "data.eval" not in training_facts(off, facts)
    assert [key for key in flatten_config(off) if "valid" in key or "best" in key] == []
    assert compare(old, new, allowed=["data.eval"]).inexact == ('data.eval: was "b", is "c"',)
