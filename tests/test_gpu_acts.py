"""What the proof for a card does with one job: its errors, its figures, and what is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu.acts import attempt, kill_and_resume, measured, train, verify
from gpu.comparing import differences
from gpu.jobs import Job, Place
from gpu.lines import Figure, Line, Result
from gpu.running import Ended
from gpu.shapes import MODELS
from gpu.watched import Notes, begin_to_measure, end_measuring, speed
from support.cards import JOB, Played, place, write_run

from trainer.config import PrecisionChoice, TrainerConfig


def test_a_process_gets_no_more_time_than_there_is(tmp_path: Path) -> None:
    """The limit of a process is its own, or what is left of the whole, if that is less."""
    played = Played(now_s=400)
    here = place(tmp_path, played)
    train(here, JOB, alone=True)
    played.now_s = 455
    (late,) = attempt(verify, here, JOB, what="verify", hindrance=None)

    assert played.limits == [75]  # five seconds are kept for the table
    played.now_s = 456
    (later,) = attempt(verify, here, JOB, what="verify", hindrance=None)
    assert late.error is not None
    assert "no time left" not in late.error
    assert later.result is Result.NOT_RUN
    assert later.error == "no time left: 24 s of 480"


def test_the_speed_of_a_run_beside_others_is_not_reported(tmp_path: Path) -> None:
    """Tokens per second are those of a process that had the card to itself, after warming up."""
    here = place(tmp_path, Played())
    alone = train(here, JOB, alone=True)
    shared = train(here, Job(model="8b"), alone=False)

    assert alone.figures["tokens_per_s"] == Figure(value=50.0, unit="tokens/s")
    assert "tokens_per_s" not in shared.figures
    assert shared.figures["peak_allocated"].value == 6e9
    assert "peak 20 % above the forecast" in alone.message


@pytest.mark.parametrize(("steps", "found"), [(0, None), (3, None), (4, 100.0), (6, 100.0)])
def test_speed_needs_more_than_the_warm_up(steps: int, found: float | None) -> None:
    """Too few steps give no speed rather than a wrong one."""
    text = [{"step": at, "tokens": 50.0, "at_s": at / 2} for at in range(1, steps + 1)]

    assert speed(text, warm_up=2) == found


def test_a_resumed_run_with_the_same_bits_is_done(tmp_path: Path) -> None:
    """Times may differ; where it was killed and from where it went on is told."""
    here = place(tmp_path, Played())
    train(here, JOB, alone=True)
    line = kill_and_resume(here, JOB)

    assert line.result is Result.DONE
    assert line.message.startswith("killed after step 3, went on from step 2; the same bits")
    assert line.figures["redone"] == Figure(value=1, unit="steps")


def damage_loss(run_dir: Path) -> None:
    """Another loss in the fifth step."""
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 0.2,', '"loss": 0.2000001,'))


def damage_params(run_dir: Path) -> None:
    """Another digest of the parameters in the last step."""
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace(f"{6:016x}", f"{7:016x}"))


def shorten(run_dir: Path) -> None:
    """No last step."""
    path = run_dir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def lengthen(run_dir: Path) -> None:
    """One step twice."""
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[-1])


def damage_adapter(run_dir: Path) -> None:
    """One other byte in the adapter."""
    (run_dir / "adapter" / "adapter_model.safetensors").write_bytes(b"traineD")


def damage_moments(run_dir: Path) -> None:
    """The same adapter with another optimizer."""
    (run_dir / "checkpoints" / "step-00000006" / "optimizer.safetensors").write_bytes(b"moment")


def lose_checkpoint(run_dir: Path) -> None:
    """No checkpoint of the end."""
    (run_dir / "checkpoints" / "step-00000006" / "adapter.safetensors").unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    damage_loss: "step 5: loss is 0.2000001, undisturbed 0.2",
    damage_params: "step 6: params is 0000000000000007, undisturbed 0000000000000006",
    shorten: "the log has 5 lines, undisturbed 6",
    lengthen: "the log has 7 lines, undisturbed 6",
    damage_adapter: "adapter/adapter_model.safetensors differs in 1 of 7 bytes",
    damage_moments: "checkpoints/step-00000006/optimizer.safetensors differs in 3 of 9 bytes",
    lose_checkpoint: "checkpoints/step-00000006/adapter.safetensors is missing in",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_other_bit_is_found_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A difference in a log, an adapter or an optimizer is told with its place."""
    write_run(tmp_path / "calm", upto=6)
    write_run(tmp_path / "killed", upto=6, seconds=3)
    same = differences(tmp_path / "calm", tmp_path / "killed", steps=6)
    damage(tmp_path / "killed")
    text = differences(tmp_path / "calm", tmp_path / "killed", steps=6)

    assert same == []
    assert text[0].startswith(DAMAGES[damage])


def test_two_runs_that_did_nothing_are_not_the_same(tmp_path: Path) -> None:
    """Where nothing was trained nothing was compared, which is no proof."""
    for name in ("calm", "killed"):
        write_run(tmp_path / name, upto=4)
    text = differences(tmp_path / "calm", tmp_path / "killed", steps=6)
    missing = differences(tmp_path / "nowhere", tmp_path / "neither", steps=6)

    assert text == ["the undisturbed run has a log of 4 lines, not of steps 1 to 6"]
    assert missing == ["the undisturbed run has a log of 0 lines, not of steps 1 to 6"]


def test_a_resumed_run_with_other_bits_fails_its_line(tmp_path: Path) -> None:
    """The line says at which step what differs, and where the run was killed."""
    played = Played()
    here = place(tmp_path, played)
    train(here, JOB, alone=True)
    damage_loss(tmp_path / "1b-bf16-adamw-calm")
    line = kill_and_resume(here, JOB)

    assert line.result is Result.FAILED
    assert line.error == "step 5: loss is 0.2, undisturbed 0.2000001"
    assert line.figures["killed_after"].value == 3
    assert line.error in line.log


def test_a_run_that_began_anew_did_not_resume(tmp_path: Path) -> None:
    """The same bits from a run that forgot its checkpoint prove nothing about checkpoints."""

    def forget(command: str) -> Ended | None:
        if "calm" in command or not (tmp_path / "1b-bf16-adamw-killed/metrics.jsonl").exists():
            return None
        write_run(tmp_path / "1b-bf16-adamw-killed", upto=6)
        return Ended(code=0, seconds=10)

    here = place(tmp_path, Played(faults=forget))
    train(here, JOB, alone=True)
    line = kill_and_resume(here, JOB)

    assert line.result is Result.FAILED
    assert line.error == "it did not resume from a checkpoint: None"


def test_a_kernel_that_the_trainer_leaves_off_is_not_called_exact(tmp_path: Path) -> None:
    """The same bits of two runs without it prove nothing about a kernel."""
    job = replace(JOB, kernels="norm:1")
    here = place(tmp_path, Played())
    used = [train(here, job, alone=False), kill_and_resume(here, job)]
    here.notes(job, "calm").write_text(json.dumps({"kernels": []}))
    line = kill_and_resume(here, job)

    assert [one.result for one in used] == [Result.DONE, Result.DONE]
    assert (line.result, line.error) == (
        Result.NOT_RUN, "the trainer does not use this kernel here",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (Ended(code=0, seconds=9), "the run was over before it could be killed"),
        (Ended(code=74, seconds=9, error="no space left"), "exit 74: no space left"),
        (Ended(code=-11, seconds=9), "ended by SIGSEGV"),
        (Ended(code=-9, seconds=9), "ended by SIGKILL"),  # by somebody else, such as the kernel
        (Ended(code=-9, stopped=True, seconds=99), "stopped: not done after 100 s"),
    ],
)
def test_a_run_that_was_not_killed_by_us_is_no_resumed_one(
    tmp_path: Path, ended: Ended, text: str
) -> None:
    """If the first process ends in another way, its line says how."""
    here = place(
        tmp_path, Played(faults=lambda command: ended if "adamw-killed" in command else None)
    )
    train(here, JOB, alone=True)
    line = kill_and_resume(here, JOB)

    assert (line.result, line.error) == (Result.FAILED, text)


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (Ended(code=1, seconds=1, out='{"equal": false, "steps": 2, "first_difference": [5]}'),
         "not the same: [5]"),
        (Ended(code=0, seconds=1, out='{"equal": true, "steps": 0}'), "not the same: null"),
        (Ended(code=70, seconds=1, out='{"equal": true, "steps": 2}'), "not the same: null"),
        (Ended(code=70, seconds=1, error="KeyError: 'x'"), "exit 70: KeyError: 'x'"),
        (Ended(code=0, seconds=1, out="[]"), "exit 0"),
    ],
)  # fmt: skip
def test_a_verification_that_compared_nothing_or_differs_fails(
    tmp_path: Path, ended: Ended, text: str
) -> None:
    """Only an exit of 0 with equal steps, at least one, is a verified run."""
    here = place(tmp_path, Played(faults=lambda command: ended if "verify" in command else None))
    write_run(tmp_path / "1b-bf16-adamw-killed", upto=6)
    line = verify(here, JOB)

    assert (line.result, line.error) == (Result.FAILED, text)


def test_an_act_that_breaks_is_a_failed_line(tmp_path: Path) -> None:
    """Even a mistake of the proof's own ends one line only."""

    def broken(_place: Place, _job: Job) -> Line:
        raise OSError(28, "No space left on device")

    (line,) = attempt(broken, place(tmp_path, Played()), JOB, what="break", hindrance=None)

    assert line.what == "1b bf16: break"
    assert line.result is Result.FAILED
    assert "No space left" in str(line.error)


def test_hashes_of_the_base_are_handed_to_the_next_run(tmp_path: Path) -> None:
    """Sixteen gigabytes are hashed once, by the trainer itself, not for each of the runs."""
    here = place(tmp_path, Played())
    first = here.directory(JOB, "calm")
    (first / ".hashes.json").write_text('{"a": "b"}')
    here.keep_hashes(JOB, first)
    second = here.directory(JOB, "killed")
    other = here.directory(Job(model="8b"), "calm")

    assert (second / ".hashes.json").read_text() == '{"a": "b"}'
    assert not (other / ".hashes.json").exists()


def test_memory_is_noted_as_torch_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card the notes hold its peaks since the base was loaded, and the forecast for it."""
    calls: list[str] = []
    numbers = {"memory_allocated": 7, "max_memory_allocated": 8, "max_memory_reserved": 9}
    for name, number in numbers.items():
        assert callable(getattr(torch.cuda, name))  # torch has it under this name
        monkeypatch.setattr(torch.cuda, name, lambda number=number: number)
    for name in ("synchronize", "reset_peak_memory_stats"):
        assert callable(getattr(torch.cuda, name))
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    properties = SimpleNamespace(name="Card", total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 120))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    config = TrainerConfig.model_validate(
        place(Path("/w"), Played()).config(Job(model="1b", precision="fp16"))
    )
    prepared = SimpleNamespace(
        device=torch.device("cuda"),
        precision=SimpleNamespace(compute=PrecisionChoice.FP16),
        model_config=MODELS["1b"],
        rows=SimpleNamespace(items=[SimpleNamespace(input_ids=range(512))]),
    )
    notes = Notes()
    begin_to_measure(notes, config, prepared)
    end_measuring(notes)

    assert (notes.base_bytes, notes.peak_allocated_bytes, notes.peak_reserved_bytes) == (7, 8, 9)
    assert notes.card_used_bytes == 20
    assert calls[:2] == ["synchronize", "reset_peak_memory_stats"]
    assert notes.estimate is not None
    assert 2e9 < notes.estimate["allocated"] < notes.estimate["reserved"] < 8e9
    assert measured(vars(notes), warm_up=5, alone=False).keys() == {
        "peak_allocated", "peak_reserved", "base_and_adapter", "forecast_allocated",
        "forecast_reserved", "forecast_base", "planned_reserved",
    }  # fmt: skip
