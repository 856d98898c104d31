"""What a batch is learnt from is found on the host, and means what its labels mean."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.adapters import make
from torch.nn.functional import cross_entropy

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.examples import collate
from trainer.data.targets import collate_targets
from trainer.kernels.kernel_set import KernelSet
from trainer.loss import find_targets, summed_cross_entropy

RANDOM = random.Random(5)  # noqa: S311 - no secret


def causal_rows(count: int, *, learnt: float) -> list[Example]:
    """Return rows of random lengths whose labels are learnt here and there."""
    rows = []
    for at in range(count):
        ids = tuple(RANDOM.randrange(4, 300) for _ in range(RANDOM.randrange(1, 12)))
        labels = tuple(one if RANDOM.random() < learnt else NOT_TRAINED for one in ids)
        rows.append(Example(ids, labels, "", "", at, 0))
    return rows


def seq2seq_rows(count: int) -> list[Example]:
    """Return rows of an encoder-decoder, whose answers have other lengths than their prompts."""
    rows = []
    for at in range(count):
        ids, labels = (
            tuple(RANDOM.randrange(4, 300) for _ in range(RANDOM.randrange(1, 9))) for _ in range(2)
        )
        rows.append(Example(ids, labels, "", "", at, len(ids)))
    return rows


class Shape:
    """What the loss asks of a base to read labels."""

    def __init__(self, *, seq2seq: bool) -> None:
        self.config = type("Config", (), {"is_encoder_decoder": seq2seq})


@pytest.mark.parametrize("seq2seq", [False, True])
@pytest.mark.parametrize("learnt", [0.0, 0.3, 1.0])
def test_positions_of_the_host_are_those_of_the_labels(*, seq2seq: bool, learnt: float) -> None:
    """Over random batches, both ways to find the targets agree in each of the three tensors."""
    for _ in range(20):
        rows = seq2seq_rows(4) if seq2seq else causal_rows(4, learnt=learnt)
        found = collate_targets(rows)
        expected = find_targets(Shape(seq2seq=seq2seq), collate(rows, 3))

        assert torch.equal(found["target_positions"], expected.positions)
        assert torch.equal(found["target_ids"], expected.ids)
        assert torch.equal(found["target_slots"], expected.slots)
        assert len(expected.ids) == sum(row.targets for row in rows)


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random model of a decoder, and one of an encoder-decoder."""
    import transformers

    directory = make(request.param, tmp_path_factory.mktemp(request.param))
    family = (
        transformers.AutoModelForSeq2SeqLM
        if request.param == "t5"
        else transformers.AutoModelForCausalLM
    )
    return family.from_pretrained(str(directory)).eval()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter that has one."""
    model.zero_grad()
    torch.autograd.backward([loss])
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


def test_the_loss_and_its_gradient_have_the_bits_of_a_boolean_mask(model: Any) -> None:
    """Rows taken by index, with their gradient written back, are those that a mask chooses."""
    seq2seq = model.config.is_encoder_decoder
    rows = seq2seq_rows(5) if seq2seq else causal_rows(5, learnt=0.5)
    plain = collate(rows, 3)
    wanted = plain["labels"] != NOT_TRAINED
    if not seq2seq:
        wanted = torch.cat((wanted[:, 1:], torch.zeros(len(rows), 1, dtype=torch.bool)), 1)
    ids = collate_targets(rows)["target_ids"]

    def masked(head: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (hidden[0][wanted],)

    handle = model.get_output_embeddings().register_forward_pre_hook(masked)
    arguments: dict[str, Any] = {name: plain[name] for name in ("input_ids", "attention_mask")}
    if seq2seq:
        arguments["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(
            plain["labels"]
        )
    logits = model(**arguments, use_cache=False).logits
    expected = cross_entropy(logits.float(), ids, reduction="sum")
    handle.remove()
    before = gradients(model, expected)
    found = summed_cross_entropy(model, {**plain, **collate_targets(rows)})
    after = gradients(model, found)

    assert torch.equal(found, expected)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_head_and_loss_in_one_get_the_hidden_states_of_targets(model: Any) -> None:
    """A kernel for head and loss is given the targets alone, and its loss is the result."""
    rows = seq2seq_rows(3) if model.config.is_encoder_decoder else causal_rows(3, learnt=0.5)
    inputs = {**collate(rows, 3), **collate_targets(rows)}
    seen: list[tuple[int, ...]] = []

    def head_loss(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
        seen.append((*hidden.shape, len(targets)))
        return cross_entropy(head(hidden).float(), targets, reduction="sum")

    plain = summed_cross_entropy(model, inputs)
    found = summed_cross_entropy(model, inputs, KernelSet(head_loss=head_loss))

    again = summed_cross_entropy(model, inputs, KernelSet(head_loss=head_loss))

    targets = sum(row.targets for row in rows)
    assert seen == [(targets, model.config.hidden_size, targets)] * 2
    torch.testing.assert_close(found, plain)
    assert torch.equal(found, again)  # the second time the model's own head got no row


def test_a_model_without_a_mask_is_called_without_one(model: Any) -> None:
    """Kernels that need no mask leave it out of what the model is called with."""
    rows = seq2seq_rows(3) if model.config.is_encoder_decoder else causal_rows(3, learnt=0.5)
    seen: list[bool] = []
    handle = model.register_forward_pre_hook(
        lambda _model, _args, kwargs: seen.append("attention_mask" in kwargs), with_kwargs=True
    )
    for masked in (True, False):
        summed_cross_entropy(model, collate(rows, 3), KernelSet(masked=masked))
    handle.remove()

    assert seen == [True, False]
