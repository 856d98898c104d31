"""Attention without a mask, and of rows without padding, computes what masked attention does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import peft
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from trainer.config import TrainTable
from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.packed import RowBounds, collate_packed
from trainer.kernels import attention, varlen
from trainer.kernels.attention import UnmaskedAttention, plain_attention
from trainer.kernels.attention_use import observe_attention
from trainer.kernels.choose import choose_kernels
from trainer.kernels.kernel_set import Card, KernelSet
from trainer.kernels.varlen import (
    PackedAttention,
    Request,
    _varlen_arguments,
    attend_in_one,
    attend_row_by_row,
)

CPU = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)
SIZES: Mapping[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PACKABLE: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi": {"num_key_value_heads": 4},
    "gemma": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 4},
    "gpt2": {**GPT2, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4},
}
"""Learnt places, computed ones, windows in all layers or in some, experts; heads in groups."""
UNMASKED = {**PACKABLE, "gpt2": GPT2}
LLAMA4 = {
    "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48,
    "attention_chunk_size": 8, "num_hidden_layers": 4, "targets": ["q_proj", "v_proj"],
}  # fmt: skip
NOT_SDPA = "its attention is not SDPA"
LEFT_OFF: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "gemma2": ({"head_dim": 8}, NOT_SDPA, NOT_SDPA),
    "bloom": ({"n_layer": 2, "n_head": 4}, NOT_SDPA, NOT_SDPA),
    "t5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "an encoder reads padding and all tokens, and needs its mask",
        "an encoder reads padding and all tokens, and needs its mask",
    ),
    "llama4_text": (
        LLAMA4,
        "",
        "rows may be longer than a chunk of 8 tokens, which its masks are for",
    ),
    "gpt2": (GPT2, "", "it has no dropout, and attention of this base has one of 0.1"),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"]},
        "",
        "1 of 2 layers are attention; a state may pass from row to row",
    ),
}
"""Why each is left off: attention without a mask, and without padding; nothing if it is not."""
ROWS = ((5, 9, 30, 7), (2, 44, 81, 7, 7, 12, 90, 3, 61, 14), (99, 100))


def make(family: str, more: Mapping[str, Any]) -> Any:
    """Return a random model with a LoRA adapter that changes what it says."""
    torch.manual_seed(0)
    sizes = {**SIZES, **more}
    targets = sizes.pop("targets", "all-linear")
    config = transformers.CONFIG_MAPPING[family](**sizes)
    auto: Any = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    with warnings.catch_warnings():  # names that transformers 6 drops, and advice of PEFT's
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(target_modules=targets, r=2)
        model = peft.get_peft_model(auto.from_config(config), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def examples(rows: tuple[tuple[int, ...], ...] = ROWS) -> list[Example]:
    """Return rows whose first token is a prompt and all others are learnt."""
    return [
        Example(
            input_ids=row, labels=(NOT_TRAINED, *row[1:]), prompt="", completion="", row=number,
            prompt_length=1,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip


def padded(rows: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """Return rows padded on the right with a token of the vocabulary, masked."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[3] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


def learnt(model: Any, batch: Mapping[str, Any], ends: list[int]) -> tuple[float, torch.Tensor]:
    """Return the summed loss of the rows in a batch, and the gradient of the adapter."""
    names = ("input_ids", "attention_mask", "position_ids")
    logits = model(**{n: batch[n] for n in names if n in batch}, use_cache=False).logits
    if len(ends) > 1 and len(logits) == 1:
        packed = torch.split(logits[0], ends), torch.split(batch["input_ids"][0], ends)
        rows = list(zip(*packed, strict=True))
    else:
        rows = [
            (one[:end], ids[:end])
            for one, ids, end in zip(logits, batch["input_ids"], ends, strict=True)
        ]
    losses = [cross_entropy(one[:-1], ids[1:], reduction="sum") for one, ids in rows]
    loss = torch.stack(losses).sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
    return loss.item(), torch.cat([one.flatten() for one in gradients])


def alone(model: Any) -> tuple[float, torch.Tensor]:
    """Return the same of each row computed by itself, added up."""
    each = [learnt(model, padded((row,)), [len(row)]) for row in ROWS]
    return sum(loss for loss, _ in each), torch.stack([one for _, one in each]).sum(dim=0)


def kernels_for(model: Any, kernel: Any) -> KernelSet:
    """Choose this kernel for the model, which must suit it."""
    messages: list[str] = []
    small: dict[str, Any] = {"HEAD_DIMS": (8,)}  # the whole proof is tried once, below
    with (
        mock.patch.multiple(attention, LENGTHS=(17,), **small),
        mock.patch.multiple(varlen, ROW_LENGTHS=(17, 12, 1), **small),
    ):
        found = choose_kernels(model, CPU, TrainTable(), messages.append, kernels=[kernel])
    assert found.kernels == (kernel,), messages
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep transformers' advice on tiny configs out of the log."""
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize("family", UNMASKED)
def test_rows_without_a_mask_are_learnt_as_each_row_alone(family: str) -> None:
    """Loss and gradient of right-padded rows are those of each row by itself, to rounding."""
    model = make(family, UNMASKED[family])
    kernels = kernels_for(model, UnmaskedAttention())
    assert not kernels.masked
    batch = padded(ROWS)
    del batch["attention_mask"]
    with kernels.enabled(batch):
        loss, gradient = learnt(model, batch, [len(row) for row in ROWS])
    expected_loss, expected = alone(model)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("family", PACKABLE)
def test_rows_without_padding_are_learnt_as_each_row_alone(family: str) -> None:
    """Loss and gradient of rows one behind the other are those of each by itself, to rounding."""
    model = make(family, PACKABLE[family])
    kernels = kernels_for(model, PackedAttention(longest=64, on_card=False))
    assert kernels.packed
    assert not kernels.masked
    batch = collate_packed(examples())
    with kernels.enabled(batch):
        loss, gradient = learnt(model, batch, [len(row) for row in ROWS])
    expected_loss, expected = alone(model)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def test_another_row_changes_no_bit_of_the_first() -> None:
    """Rows of a batch never see each other: the second and third may be anything."""
    model = make("llama", {})
    kernels = kernels_for(model, PackedAttention(longest=64, on_card=False))
    seen = []
    for rows in (ROWS, (ROWS[0], tuple(n + 1 for n in ROWS[1]), (7, 8))):
        batch = collate_packed(examples(rows))
        with kernels.enabled(batch), torch.no_grad():
            logits = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
        seen.append(logits[0, : len(ROWS[0])])
    assert torch.equal(*seen)


@pytest.mark.parametrize("family", LEFT_OFF)
def test_a_base_that_needs_more_than_causal_attention_keeps_its_mask_and_says_why(
    family: str,
) -> None:
    """Windows, dropout, encoders, states and attention of a base's own are seen, not guessed."""
    more, unmasked, packed = LEFT_OFF[family]
    model = make(family, more)
    assert (UnmaskedAttention().unsuitable(model, CPU) or "") == unmasked
    reason = PackedAttention(longest=64, on_card=False).unsuitable(model, CPU)
    assert (reason or "") == packed


def test_rows_longer_than_a_chunk_keep_the_masks_of_their_base() -> None:
    """Within a chunk of Llama 4 nothing is masked; beyond it transformers' own masks compute."""
    model = make("llama4_text", LLAMA4)
    kernels = kernels_for(model, UnmaskedAttention())
    config = model.get_base_model().config
    for length, implementation in ((8, "qft_unmasked"), (9, "sdpa")):
        with kernels.enabled({"input_ids": torch.zeros(2, length)}):
            assert config._attn_implementation == implementation


def test_outside_of_training_the_model_attends_as_before() -> None:
    """Scoring and answers use the mask: the switch is back after a pass, and after a failed one."""
    model = make("llama", {})
    kernels = kernels_for(model, UnmaskedAttention())
    config = model.get_base_model().config
    assert config._attn_implementation == "sdpa"
    with pytest.raises(MemoryError), kernels.enabled({"input_ids": torch.zeros(1, 4)}):
        raise MemoryError
    assert config._attn_implementation == "sdpa"


def test_watching_a_model_leaves_it_and_the_generators_as_they_were() -> None:
    """Modes, generators and the attention in use are those of before, though dropout was drawn."""
    model = make("gpt2", GPT2)
    model.base_model.model.transformer.h[0].train()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    use = observe_attention(model, CPU)
    assert (use.layers, use.dropout, use.windows, use.problem) == (2, 0.1, {}, None)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert model.get_base_model().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", [UnmaskedAttention(), PackedAttention(longest=9, on_card=False)])
def test_the_proof_of_attention_holds_on_a_processor(kernel: Any) -> None:
    """Values, gradients and repeated bits are those of attention written out."""
    assert kernel.prove(CPU) is None


def test_the_proof_of_packed_attention_fails_where_a_row_sees_another() -> None:
    """A function that is causal over the whole batch is found out."""

    def leaking(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _request: Request
    ) -> torch.Tensor:
        return plain_attention(q[None], k[None], v[None])[0]

    kernel = PackedAttention(longest=9, on_card=False)
    kernel._attend = leaking
    assert "the value differs from the plain way" in str(kernel.prove(CPU))


def test_packed_attention_scales_scores_as_the_layer_asks() -> None:
    """Granite and Gemma scale by other numbers than 1 / sqrt(head_dim)."""
    bounds = RowBounds(cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), longest=3)
    q, k, v = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    scaled = attend_row_by_row(q, k, v, Request(bounds=bounds, scale=0.5))
    expected = attend_row_by_row(q * (0.5 * 8**0.5), k, v, Request(bounds=bounds))
    assert torch.allclose(scaled, expected, atol=1e-6)


def rows_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, **more: Any
) -> torch.Tensor:
    """Compute what `varlen_attn` is documented to compute, of [tokens, heads, head_dim]."""
    assert query.is_contiguous()
    request = Request(bounds=RowBounds(cu_seqlens=ends, longest=3), **more)
    query, key, value = (one.transpose(0, 1) for one in (query, key, value))
    return attend_row_by_row(query, key, value, request).transpose(0, 1)


def varlen_2_10(  # noqa: PLR0917 - as torch has it
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,  # noqa: FBT001, FBT002
) -> torch.Tensor:  # fmt: skip
    """Take what torch 2.10 takes: as many heads everywhere, one scale, no window."""
    assert query.shape == key.shape
    assert (cu_seq_q is cu_seq_k, max_q, max_k, is_causal, return_aux) == (True, 3, 3, True, None)
    return rows_of(query, key, value, cu_seq_q)


def varlen_2_11(  # noqa: PLR0917 - as torch has it
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    """Take what torch 2.11 takes: a scale and a window, to the left without the token itself."""
    assert query.shape == key.shape
    assert (cu_seq_q is cu_seq_k, max_q, max_k, return_aux) == (True, 3, 3, None)
    left, right = window_size
    assert right == 0
    return rows_of(query, key, value, cu_seq_q, scale=scale, window=left + 1 or None)


def varlen_2_13(  # noqa: PLR0917 - as torch has it
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    seqused_k: Any = None, block_table: Any = None, num_splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Take what torch 2.13 takes: fewer heads of keys, and a fixed number of parts."""
    assert (enable_gqa, num_splits) == (True, 1)
    assert (seqused_k, block_table) == (None, None)
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    return varlen_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
        return_aux=return_aux, scale=scale, window_size=window_size,
    )  # fmt: skip


@pytest.mark.parametrize("version", [varlen_2_10, varlen_2_11, varlen_2_13])
@pytest.mark.parametrize(("scale", "window"), [(None, None), (0.5, None), (0.5, 2)])
def test_each_version_of_torch_is_called_so_that_rows_are_causal(
    version: Any, scale: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`varlen_attn` changed twice; by its signature it gets scale, window and heads in groups."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", version)
    _varlen_arguments.cache_clear()
    monkeypatch.setattr(varlen, "_varlen_arguments", _varlen_arguments.__wrapped__)
    if version is varlen_2_10 and window is not None:
        assert not varlen._takes_windows()
        return
    bounds = RowBounds(cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), longest=3)
    q, k, v = (
        torch.randn(heads, 5, 8, generator=torch.Generator().manual_seed(heads))
        for heads in (4, 2, 2)
    )
    request = Request(bounds=bounds, scale=scale, window=window)
    found = attend_in_one(q, k, v, request)
    assert torch.allclose(found, attend_row_by_row(q, k, v, request), atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 5), torch.float16, "it needs a card of compute capability 8.0"),
        (None, torch.float32, "it needs a card of compute capability 8.0"),
        ((8, 6), torch.float32, "it needs 16-bit arithmetic"),
    ],
)
def test_the_kernel_of_a_card_is_not_used_on_others(
    capability: tuple[int, int] | None, dtype: torch.dtype, reason: str
) -> None:
    """Flash attention begins with Ampere and computes in 16 bits."""
    card = Card(device=torch.device("cpu"), capability=capability, dtype=dtype)
    assert PackedAttention(longest=9).unsuitable(None, card) == reason


def test_a_packed_batch_has_no_padding_and_never_learns_across_rows() -> None:
    """Positions begin anew, bounds are int32, and the first token of a row is no target."""
    batch = collate_packed(examples(((5, 6), (7, 8, 9))))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[NOT_TRAINED, 6, NOT_TRAINED, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    rows = batch["rows"].to(CPU.device)
    assert rows.cu_seqlens.tolist() == [0, 2, 5]
    assert rows.cu_seqlens.dtype is torch.int32
    assert rows.longest == 3
    assert batch["target_positions"].tolist() == [0, 2, 3]
    assert batch["target_ids"].tolist() == [6, 8, 9]
    assert batch["target_slots"].tolist() == [0, 3, 1, 2, 3]
