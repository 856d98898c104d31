"""Activations that are computed again drop what they dropped before, whatever drops it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import peft
import pytest
import torch

from trainer.device.activations import may_draw, set_checkpointing

WORDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3, "vocab_size": 64}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DRAWING: dict[str, tuple[str, Mapping[str, Any], float]] = {
    "LoRA": ("Llama", {}, 0.3),
    "attention": ("Llama", {"attention_dropout": 0.3}, 0.0),
    "modules": ("Phi", {"resid_pdrop": 0.3}, 0.0),
    "functions that read the config": ("Falcon", {"hidden_dropout": 0.3}, 0.0),
    "an encoder-decoder": ("T5", {"dropout_rate": 0.3}, 0.0),
}
STILL = {
    "Llama": {}, "Phi": {}, "Falcon": {}, "T5": {"dropout_rate": 0.0}, "Qwen3Moe": {}, "GPT2": {
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0,
    },
}  # fmt: skip


def adapted(family: str, settings: Mapping[str, Any], dropout: float) -> Any:
    """Return a small random model of a family with LoRA on all its linears, in training mode."""
    import transformers

    sizes: dict[str, Any] = {**SIZES, "intermediate_size": 32}
    if family == "T5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        sizes["decoder_start_token_id"] = 3
    elif family == "Qwen3Moe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        sizes["num_key_value_heads"] = 2
    config = getattr(transformers, f"{family}Config")(**{**WORDS, **sizes, **settings})
    kind = "ForConditionalGeneration" if family == "T5" else "ForCausalLM"
    kind = "LMHeadModel" if family == "GPT2" else kind
    torch.manual_seed(0)
    base = getattr(transformers, family + kind)(config)
    method = peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=dropout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, method).train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of a pass over fixed tokens, with the generator at a fixed state."""
    model.zero_grad()
    ids = torch.arange(4, 36).reshape(2, 16)
    torch.manual_seed(1)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    torch.autograd.backward([loss])
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize("source", DRAWING)
def test_dropped_elements_are_the_same_when_computed_again(source: str) -> None:
    """The gradient with checkpoints has the bits of the one without."""
    model = adapted(*DRAWING[source])
    expected = gradients(model)
    set_checkpointing(model, on=True)
    found = gradients(model)

    assert may_draw(model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("family", STILL)
def test_without_random_numbers_no_state_of_a_generator_is_kept(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that draws nothing, no layer copies the states of the generators."""
    model = adapted(family, STILL[family], 0.0)
    expected = gradients(model)
    set_checkpointing(model, on=True)
    kept: list[int] = []
    state = torch.get_rng_state()

    def keep() -> torch.Tensor:
        kept.append(1)
        return state

    monkeypatch.setattr(torch, "get_rng_state", keep)
    found = gradients(model)

    assert not may_draw(model)
    assert kept == []
    torch.testing.assert_close(found, expected)  # T5 adds up another way with checkpoints


def test_of_foreign_code_nothing_is_assumed() -> None:
    """A module of another library may draw numbers in ways that no setting names."""

    class Foreign(torch.nn.Module):
        pass

    model = adapted("Llama", {}, 0.0)
    model.get_base_model().model.layers[0].extra = Foreign()

    assert may_draw(model)
