"""Stopped at any step and resumed, a run gives the same losses and adapter, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import Logger, Rig, outcome, outcome_tensors, restored, rig, stopped, twin_of

from trainer.errors import Diverged, DoesNotFit, Preempted
from trainer.job.resume import size_limit
from trainer.saving.checkpoint import load
from trainer.saving.manifest import Damaged, directory_name
from trainer.training.loop import train

HARD: dict[str, dict[str, Any]] = {
    "stretch": {"steps": 14, "batch_size": 4, "micro_batch": 1, "lr": 1e-2, "warmup": 2.0},
    "whole": {"steps": 14, "batch_size": 4, "micro_batch": 4, "lr": 1e-2, "schedule": "cosine"},
}


@pytest.fixture(scope="module", params=sorted(HARD))
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a finished run: grouped by length, dropout 0.1, almost three epochs of 20 rows."""
    run = tiny.make_run(tmp_path_factory.mktemp(request.param), rows=20, train=HARD[request.param])
    made = rig(run)
    made.train(until=14)
    return made


def test_stopped_after_every_step_the_bits_are_the_same(undisturbed: Rig, tmp_path: Path) -> None:
    """For every step: train to it, save, start anew, finish: log, adapter and moments are equal."""
    expected = outcome(undisturbed)
    finely = undisturbed.state.counters.micro_batch == 1
    for stop, run in stopped(undisturbed, tmp_path, range(14) if finely else (3, 8, 13)):
        second = restored(run)

        assert second.state.counters.step == stop
        second.train(until=14)
        assert expected == outcome(second)


def test_stopped_after_each_step_in_one_run(undisturbed: Rig, tmp_path: Path) -> None:
    """A run that is evicted after every single step still ends with the same bits."""
    run = twin_of(undisturbed, tmp_path)
    for stop in range(1, 15):
        made = restored(run)
        made.train(until=stop)
        made.save()

    assert outcome(undisturbed) == outcome(made)


def test_a_notice_stops_between_steps_and_the_log_ends_there(
    undisturbed: Rig, tmp_path: Path
) -> None:
    """With the flag up the loop leaves after the step it is in, before the next begins."""
    made = rig(twin_of(undisturbed, tmp_path))
    logger = Logger(made.state, flag=made.context.flag, stop_after=5)

    with pytest.raises(Preempted):
        train(made.context, made.state, logger, until=14)
    assert [record["step"] for record in logger.records] == [1, 2, 3, 4, 5]


def test_a_step_given_up_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    """A notice without time left abandons a step between micro-batches; doing it again is exact."""
    run = tiny.make_run(tmp_path, rows=20, train=HARD["stretch"])
    made = rig(run)
    made.train(until=3)
    before = outcome(made)
    model_forward = made.context.model.forward
    passes = []

    def forward_and_hear(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == 2:
            made.context.flag.set(seconds_left=0, reason="test")
        return model_forward(*args, **kwargs)

    made.context.model.forward = forward_and_hear
    with pytest.raises(Preempted):
        made.train(until=14)

    assert len(passes) == 2
    assert before == outcome(made)
    assert all(parameter.grad is None for parameter in made.state.parameters.values())


def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step(tmp_path: Path) -> None:
    """When memory runs out the same step is done with half as much at a time, and it is kept so."""
    run = tiny.make_run(tmp_path, rows=20, train=HARD["whole"], method={"dropout": 0.0})
    plain = rig(run)
    plain.train(until=2)
    expected = tiny.losses(run)
    made = rig(run)
    original = made.context.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("test")
        return original(*args, **kwargs)

    made.context.model.forward = forward
    made.train(until=2)

    assert made.state.counters.micro_batch == 1
    assert [r["loss"] for r in tiny.losses(run)] == pytest.approx(
        [r["loss"] for r in expected], rel=1e-6
    )
    made.save()
    assert restored(run).state.counters.micro_batch == 1


def test_one_sequence_that_does_not_fit_is_reported_so(tmp_path: Path) -> None:
    """If even one sequence exceeds the memory, the error says what to lower."""
    made = rig(tiny.make_run(tmp_path, rows=20, train=HARD["stretch"]))

    def forward(**_kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("test")

    made.context.model.forward = forward
    with pytest.raises(DoesNotFit, match=r"train\.max_length"):
        made.train(until=1)


def test_an_update_that_does_not_fit_is_never_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out in the update ends the run: a half update cannot be done again."""
    made = rig(tiny.make_run(tmp_path, rows=20, train=HARD["whole"]))
    made.train(until=1)
    calls = []

    def step() -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("test")

    monkeypatch.setattr(made.state.optimizer, "step", step)
    with pytest.raises(DoesNotFit, match=r"method\.r"):
        made.train(until=2)

    assert (calls, made.state.counters.step) == ([1], 1)


def test_a_gradient_whose_length_overflows_updates_nothing_under_a_loss_scale(
    tmp_path: Path,
) -> None:
    """Finite numbers can have an infinite length: the step counts as skipped, and is."""
    made = scaled(
        rig(tiny.make_run(tmp_path, rows=20, train={**HARD["whole"], "max_grad_norm": 0}))
    )
    made.train(until=1)
    before = outcome(made)[1]
    parameters: Any = made.state.parameters.values()
    for parameter in parameters:
        parameter.register_hook(lambda grad: torch.full_like(grad, 1e30))
    made.train(until=2)

    assert before == outcome(made)[1]
    assert made.state.counters.skipped == 1


def test_steps_without_finite_gradient_are_skipped_and_end_the_run(tmp_path: Path) -> None:
    """A non-finite gradient changes no parameter; twenty in a row end the run."""
    made = rig(tiny.make_run(tmp_path, rows=20, train={**HARD["whole"], "steps": 40}))
    made.train(until=1)
    before = outcome(made)[1]
    original = made.context.model.forward

    def forward(**kwargs: Any) -> Any:
        out = original(**kwargs)
        out.logits = out.logits * float("nan")
        return out

    made.context.model.forward = forward
    with pytest.raises(Diverged, match="20 steps in a row"):
        made.train(until=40)

    assert before == outcome(made)[1]
    assert made.state.counters.skipped == 20
    assert tiny.losses(made.run_dir)[-1]["loss"] is None
    assert tiny.losses(made.run_dir)[-1]["lr"] == made.context.schedule.lr(20)


def test_foreign_tensors_are_refused_before_anything_changes(tmp_path: Path) -> None:
    """A checkpoint of another rank is damaged for this run, and the state stays as it was."""
    other = rig(tiny.make_run(tmp_path / "other", rows=20, method={"r": 2}))
    other.train(until=1)
    other.save()
    made = rig(tiny.make_run(tmp_path / "mine", rows=20))
    before = outcome_tensors(made)
    snapshot = load(
        other.run_dir / "checkpoints" / directory_name(1), tensor_bytes_max=size_limit(made.state)
    )

    with pytest.raises(Damaged, match="adapter"):
        made.state.restore(snapshot)
    assert before == outcome_tensors(made)


def test_foreign_moments_leave_a_fresh_start_fresh(undisturbed: Rig, tmp_path: Path) -> None:
    """A whole checkpoint with moments of another shape is refused, and what follows is exact."""
    made = rig(twin_of(undisturbed, tmp_path))
    made.train(until=2)
    good = made.state.snapshot({})
    key = next(key for key in good.optimizer if key.endswith("exp_avg"))
    made.store.save(replace(good, optimizer={**good.optimizer, key: torch.zeros(3)}))
    fresh = rig(made.run_dir)
    found = fresh.store.load_newest(
        tensor_bytes_max=size_limit(fresh.state), on_message=fresh.messages.append
    )

    assert found is not None
    with pytest.raises(Damaged, match=r"optimizer: .*exp_avg is"):
        fresh.state.restore(found)
    fresh.train(until=14)
    assert outcome(undisturbed) == outcome(fresh)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaler": {}}, "loss scale"),
        ({"scaler": {"scale": "1"}}, "loss scale"),
        ({"optimizer": {"x/step": 1}}, "optimizer"),
        ({"log": b'{"step": 1}\n{"step": 1}\n'}, "log"),
        ({"log": b"1\n[]\n"}, "log"),
    ],
)
def test_a_whole_checkpoint_of_odd_contents_is_refused_before_anything_changes(
    undisturbed: Rig, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """Right hashes over a wrong scale, a wrong optimizer or a wrong log are damage too."""
    made = scaled(rig(twin_of(undisturbed, tmp_path)))
    made.train(until=2)
    good = made.state.snapshot({})
    odd = {k: v for k, v in change.items() if k == "log"}
    bad = replace(good, state={**good.state, **{k: change[k] for k in change.keys() - odd}}, **odd)
    fresh = scaled(rig(made.run_dir))
    before = outcome_tensors(fresh)

    with pytest.raises(Damaged, match=words):
        fresh.state.restore(bad)
    assert before == outcome_tensors(fresh)


@pytest.mark.parametrize("kind", ["adamw8bit", "adamw"])
def test_every_optimizer_resumes_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    """The moments of each optimizer survive, 8-bit ones with their scales and maps."""
    run = tiny.make_run(
        tmp_path / "a", rows=20, method={"optimizer": kind, "r": 64}, train=HARD["whole"]
    )
    whole = rig(run)
    whole.train(until=6)
    twin = twin_of(whole, tmp_path / "b")
    first = rig(twin)
    first.train(until=3)
    first.save()
    second = restored(twin)
    second.train(until=6)
    kinds = {tensor.dtype for tensor in second.state.snapshot({}).optimizer.values()}

    assert outcome(whole) == outcome(second)
    assert (torch.uint8 in kinds) == (kind == "adamw8bit")


def test_moments_return_into_the_very_memory_that_the_optimizer_chose(tmp_path: Path) -> None:
    """A paged tensor calls itself the host's: another one made there is of no use to a GPU."""
    run = tiny.make_run(tmp_path, rows=20, train=HARD["whole"])
    first = rig(run)
    first.train(until=2)
    first.save()
    second = rig(run)
    pages: list[int] = []
    step = second.state.optimizer.step

    def paging_step() -> None:
        step()
        pages.extend(m["exp_avg"].data_ptr() for m in second.state.optimizer.state.values())

    second.state.optimizer.step = paging_step  # type: ignore[method-assign,assignment]
    found = second.store.load_newest(
        tensor_bytes_max=size_limit(second.state), on_message=second.messages.append
    )
    assert found is not None
    second.state.restore(found)
    restored_to = [m["exp_avg"].data_ptr() for m in second.state.optimizer.state.values()]

    assert pages
    assert sorted(restored_to) == sorted(pages)
    assert outcome_tensors(first) == outcome_tensors(second)


def scaled(made: Rig) -> Rig:
    """Give a rig the loss scale of float16, which grows after every second good step."""
    made.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
    return made


def overflow_in(made: Rig, step: int) -> None:
    """Make the gradient of one step overflow, as float16 does."""
    original = made.context.model.forward

    def forward(**kwargs: Any) -> Any:
        out = original(**kwargs)
        if made.state.counters.step == step:
            out.logits = out.logits * torch.tensor(float("inf"))
        return out

    made.context.model.forward = forward


def test_a_scaled_loss_gives_the_bits_of_an_unscaled_one(tmp_path: Path) -> None:
    """Scaling by powers of two and unscaling before the clip changes nothing at all."""
    plain = rig(tiny.make_run(tmp_path / "plain", rows=20, train=HARD["stretch"]))
    plain.train(until=6)
    other = scaled(rig(tiny.make_run(tmp_path / "scaled", rows=20, train=HARD["stretch"])))
    other.train(until=6)

    assert outcome(plain) == outcome(other)
    assert other.state.scaler is not None
    assert other.state.scaler.get_scale() == 2.0**17


def test_the_loss_scale_survives_with_its_history(tmp_path: Path) -> None:
    """Stopped after any step around an overflow, scale, growth and bits are as if undisturbed."""
    whole = scaled(rig(tiny.make_run(tmp_path / "whole", rows=20, train=HARD["stretch"])))
    overflow_in(whole, 3)
    whole.train(until=8)
    assert whole.state.scaler is not None
    for stop in range(1, 8):
        run = twin_of(whole, tmp_path / str(stop))
        first = scaled(rig(run))
        overflow_in(first, 3)
        first.train(until=stop)
        first.save()
        second = scaled(rig(run))
        overflow_in(second, 3)
        found = second.store.load_newest(
            tensor_bytes_max=size_limit(second.state), on_message=second.messages.append
        )
        assert found is not None
        second.state.restore(found)
        second.train(until=8)

        assert outcome(whole) == outcome(second)
        assert second.state.scaler is not None
        assert second.state.scaler.state_dict() == whole.state.scaler.state_dict()
    assert [record["skipped"] for record in tiny.losses(whole.run_dir)][3] is True
    assert whole.state.counters.skipped == 1
