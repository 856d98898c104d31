"""Our loop computes what `transformers.Trainer` computes, and its short cuts are exact."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import Rig, outcome_tensors, rig

from trainer.data.codec import NOT_TRAINED
from trainer.loss import summed_cross_entropy

TOLERANCE = 1e-6  # relative, of the loss of each step; float32 has 6e-8


def theirs(made: Rig, directory: Path, *, accumulate: int) -> list[float]:
    """Train the very same model with transformers.Trainer in our order; return losses per step."""
    from transformers import Trainer, TrainingArguments

    plan = made.context.schedule
    order = [row for step in range(plan.steps) for row in plan.batch(step)]
    losses: list[float] = []

    class Recording(Trainer):  # type: ignore[misc] # transformers ships no types
        def _get_train_sampler(self, *_arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(order)

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            losses.append(loss.item())
            return loss

    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=plan.batch_size // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=plan.steps,
        learning_rate=plan.lr_schedule.peak,
        warmup_steps=plan.lr_schedule.warmup,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Recording(
        model=made.context.model,
        args=arguments,
        train_dataset=[made.context.examples[row] for row in order],
        data_collator=made.context.objective.collate,
    )
    with warnings.catch_warnings():  # torch warns of its own pinning when there is no GPU
        warnings.simplefilter("ignore")
        trainer.train()
    return [sum(losses[at : at + accumulate]) for at in range(0, len(losses), accumulate)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_those_of_transformers_step_by_step(tmp_path: Path, accumulate: int) -> None:
    """One epoch on the same rows in the same order gives the same losses within 1e-6."""
    settings = {
        "epochs": 1,
        "steps": None,
        "batch_size": 4,
        "micro_batch": 4 // accumulate,
        "warmup": 2,
        "weight_decay": 0.01,
    }
    run = tiny.make_run(tmp_path, rows=24, method={"dropout": 0.0}, train=settings)
    ours = rig(run)
    ours.train(until=6)
    other = rig(run)
    expected = theirs(other, tmp_path / "theirs", accumulate=accumulate)
    found = [record["loss"] for record in tiny.losses(run)]

    assert len(found) == 6
    assert found == pytest.approx(expected, rel=TOLERANCE)
    for name, parameter in ours.state.parameters.items():
        torch.testing.assert_close(parameter, other.state.parameters[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_dropping_positions_before_the_head_is_exact(tmp_path: Path, loss_on: str) -> None:
    """The loss over supervised positions equals the model's own loss over all of them."""
    made = rig(tiny.make_run(tmp_path, rows=8, data={"loss_on": loss_on}))
    made.context.model.eval()
    inputs = made.context.objective.collate(made.context.examples[:5])
    targets = (inputs["labels"][:, 1:] != NOT_TRAINED).sum()
    expected = made.context.model(**inputs).loss * targets

    torch.testing.assert_close(summed_cross_entropy(made.context.model, inputs), expected)


def test_the_head_sees_supervised_positions_only(tmp_path: Path) -> None:
    """No logits are computed for positions that nothing is learnt from."""
    made = rig(tiny.make_run(tmp_path, rows=8))
    inputs = made.context.objective.collate(made.context.examples[:5])
    shapes = []
    base = made.context.model.get_base_model()
    base.get_output_embeddings().register_forward_hook(
        lambda _head, _inputs, logits: shapes.append(tuple(logits.shape))
    )
    summed_cross_entropy(made.context.model, inputs)

    assert shapes == [(int((inputs["labels"] != NOT_TRAINED).sum()), 320)]


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_head_in_chunks_gives_the_same_gradient(tmp_path: Path, loss_on: str) -> None:
    """Going through the head in chunks of two positions changes loss and gradient by rounding."""
    made = rig(tiny.make_run(tmp_path, rows=8, data={"loss_on": loss_on}))
    made.context.model.eval()
    inputs = made.context.objective.collate(made.context.examples[:5])
    shapes: list[int] = []
    made.context.model.get_base_model().get_output_embeddings().register_forward_hook(
        lambda _head, _inputs, logits: shapes.append(logits.shape[0])
    )
    found = []
    for chunk_bytes in (1 << 30, 2 * 320 * 4):
        loss = summed_cross_entropy(made.context.model, inputs, chunk_bytes=chunk_bytes)
        torch.autograd.backward([loss])
        grads = [p.grad for p in made.state.parameters.values() if p.grad is not None]
        found.append((loss.detach(), [grad.clone() for grad in grads]))
        made.state.optimizer.zero_grad()

    torch.testing.assert_close(found[0], found[1])
    assert max(shapes[1:]) == 2


def test_a_soft_cap_after_the_head_survives_chunks() -> None:
    """A model that caps its logits (Gemma 2) gets its own loss, however small the chunks."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.05,
        )
    ).eval()
    ids = torch.arange(4, 16).reshape(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    torch.testing.assert_close(
        summed_cross_entropy(model, inputs, chunk_bytes=64), model(**inputs).loss * 10
    )


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_cut_into_micro_batches_does_not_change_the_gradient(
    tmp_path: Path, micro_batch: int
) -> None:
    """Losses and adapter of a run are the same, up to rounding, however its batches are cut."""
    found = []
    for size in (6, micro_batch):
        run = tiny.make_run(
            tmp_path / str(size),
            rows=20,
            method={"dropout": 0.0},
            train={"batch_size": 6, "micro_batch": size},
        )
        made = rig(run)
        made.train(until=5)
        found.append(([r["loss"] for r in tiny.losses(run)], made))

    assert found[1][0] == pytest.approx(found[0][0], rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputing_activations_changes_no_bit(tmp_path: Path, *, checkpointing: bool) -> None:
    """Gradient checkpointing recomputes every layer, dropout included, to the same bits."""
    tables: dict[str, dict[str, Any]] = {
        "method": {"dropout": 0.1},
        "train": {"gradient_checkpointing": checkpointing},
    }
    made = rig(tiny.make_run(tmp_path / "a", rows=20, **tables))
    layer = made.context.model.get_base_model().model.layers[0].input_layernorm
    passes = []
    layer.register_forward_hook(lambda *_arguments: passes.append(1))
    made.train(until=3)
    plain = rig(tiny.make_run(tmp_path / "b", rows=20, method={"dropout": 0.1}))
    plain.train(until=3)

    assert len(passes) == (6 if checkpointing else 3)
    assert outcome_tensors(made) == outcome_tensors(plain)
