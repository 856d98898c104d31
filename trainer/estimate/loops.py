"""How a training loop holds its bytes: ours, and those whose peaks others have published.

One formula (`memory.py`) computes the peak of all of them; a loop is its settings. What it keeps
was read in its source, or counted in it by torch's hooks for saved tensors. What no source says was
fitted on the published peaks, few figures for all rows of a loop; each loop names its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of one loop; bytes are those of one number unless something else is said."""

    name: str
    trained_bytes: float = 4.0
    """Of a weight that is trained."""
    gradient_bytes: float = 4.0
    moment_bytes: float | None = None
    """Of both moments of a trained weight; None: 8 of AdamW, about 2 of its 8-bit kinds."""
    master_bytes: float = 0.0
    """Of copies in float32 beside the trained weights, as DeepSpeed has them."""
    step_bytes: float = 0.0
    """Of what the optimizer step makes for a moment."""
    buffer_bytes: float = 0.0
    """Of buffers that are there from the start, in all."""
    paged_moments: bool = False
    """A paged optimizer's moments are no memory that torch allocates."""
    upcast: bool = False
    """Embeddings, head and norms lie in float32 (PEFT's `prepare_model_for_kbit_training`)."""
    untied: bool = False
    """Embeddings and head are two matrices, whatever the config says."""
    quantised_head: bool = False
    autocast: bool = True
    """torch casts per operation; without, everything computes in the base's type."""
    cast_inputs: Literal["", "16", "32"] = "16"
    """PEFT casts what an adapter reads to the adapter's type: each layer keeps a copy of 16 bits
    under autocast, and one of 32 bits without; empty: it is not cast."""
    cast_quantised: bool = False
    """It does so for quantised layers, too, as PEFT 0.21; versions before left it to autocast."""
    frozen_inputs: float = 0.0
    """What a quantised layer keeps of each number that it reads, in bytes."""
    eager: bool = False
    """Attention computes all scores, heads times length squared."""
    eager_kept: float = 6.0
    eager_brief: float = 8.0
    """Bytes of a score that are kept for the backward pass, and that are there in its middle."""
    fused_norms: bool = False
    """A norm keeps what it reads as it is, not a copy in float32."""
    gated_kept: int = 3
    """Tensors that a gated feed-forward part keeps of its inner width."""
    fused_views: bool = False
    """Queries, keys and values are views of one tensor, all of which is kept."""
    repeated_keys: bool = True
    """Keys and values are copied for every query head that shares them; else only beside a mask."""
    masks: bool = False
    """Where rows of a pass differ in length, each layer keeps a mask of length squared."""
    slow_activations: bool = True
    """GELU is written out in Python where transformers does so, and keeps four tensors."""
    padded_adapter: bool = False
    """The part of a fused adapter that is not trained is filled with zeros, by a kept index."""
    checkpoints_on_host: bool = False
    head_bytes: float = 12.0
    """Of a logit at the worst moment of the loss."""
    head_parts: int = 1
    """Parts in which the logits are made, one after the other."""
    head_chunk_bytes: float | None = None
    """The same as bytes of float32 logits."""
    unpacked: bool = False
    """The values of the base's 4-bit layers are kept unpacked, beside the 4 bits."""
    dequantised_bytes: float = 2.0
    """Of each number of a quantised matrix while it is computed with."""
    accumulates: bool = True
    """Gradients of an earlier micro-batch are there during the forward pass."""
    static_slack: float = 1.01
    """What torch's allocator reserves over what is allocated once and stays."""
    slack: float = 1.15
    """And over what comes and goes in every step."""
    context_bytes: float = 0.5e9
    """What the driver and libraries take beside torch's allocator."""


OURS = Loop(
    name="qft",
    cast_quantised=True,
    repeated_keys=False,
    masks=True,
    head_chunk_bytes=float(512 << 20),
    step_bytes=4.0,
)

LITGPT = Loop(
    name="litgpt finetune_lora, bf16-true",
    trained_bytes=2.0,
    gradient_bytes=2.0,
    moment_bytes=4.0,
    untied=True,
    quantised_head=True,
    autocast=False,
    cast_inputs="",
    frozen_inputs=4.0,
    fused_views=True,
    slow_activations=False,
    padded_adapter=True,
    head_bytes=10.0,
    dequantised_bytes=4.0,
)
"""litgpt: no autocast; logits of chunks in bfloat16, all of which are there at once, with their
log-softmax and gradients. Fitted: five such tensors, and that quantised layers compute in float32
(two rows of 2023 do not)."""
LITGPT_2023 = replace(LITGPT, name="lit-gpt of 2023", frozen_inputs=2.0)

QWEN = Loop(
    name="Qwen finetune.py, DeepSpeed ZeRO-2",
    trained_bytes=2.0,
    gradient_bytes=2.0,
    master_bytes=4.0,
    step_bytes=4.0,
    buffer_bytes=2 * 2e8 * 2,
    autocast=False,
    cast_inputs="",
    fused_views=True,
    head_bytes=10.0,
    dequantised_bytes=0.0,
    context_bytes=1.05e9,
)
"""Two buckets of 2e8 gradients (`ds_config_zero2.json`), weights and moments in float32 beside the
adapter's 16 bits. Fitted: bytes of a logit, the context with NCCL, and what GPTQ's kernels hold."""

QWEN_GPTQ = replace(
    QWEN, head_bytes=8.0, buffer_bytes=QWEN.buffer_bytes + 0.4e9, name="Qwen finetune.py, GPTQ"
)

UNSLOTH = Loop(
    name="unsloth notebook",
    checkpoints_on_host=True,
    slow_activations=False,
    fused_norms=True,
    gated_kept=1,
    head_bytes=8.0,
    head_chunk_bytes=0.8e9,
    buffer_bytes=0.3e9,
)
"""Own kernels: norms and the gated part keep less, checkpoints go to the host, and the loss takes
its logits in chunks. Fitted: 8 bytes of a logit, the chunk and the buffers."""
UNSLOTH_SOFTCAP = replace(UNSLOTH, head_bytes=7.0, head_chunk_bytes=None)

TORCHTUNE = Loop(
    name="torchtune",
    trained_bytes=2.0,
    gradient_bytes=2.0,
    moment_bytes=4.0,
    autocast=False,
    cast_inputs="",
    head_bytes=22.0,
    dequantised_bytes=16.0,
)
"""Everything in bfloat16 but the logits, which are float32, shifted and turned, with two gradients;
torchao unpacks 4 bits by way of 64-bit indices."""
TORCHTUNE_FULL = replace(
    TORCHTUNE, gradient_bytes=0.0, moment_bytes=2.0, head_bytes=6.0, head_parts=8
)
"""A full training on one card steps inside the backward pass, with moments of 8 bits."""
TORCHTUNE_COMPILED = replace(TORCHTUNE, head_bytes=6.0, head_parts=8)

PEFT_COMPARISON = Loop(
    name="PEFT method_comparison, MetaMathQA/run.py",
    autocast=False,
    cast_inputs="32",
    head_bytes=14.0,
    accumulates=False,
)
"""No autocast: adapters in float32 beside a base in bfloat16. Fitted: the longest batch."""
PEFT_FULL = replace(PEFT_COMPARISON, trained_bytes=2.0, gradient_bytes=2.0, moment_bytes=4.0)

HF = Loop(name="transformers Trainer and PEFT", upcast=True, head_bytes=16.0, frozen_inputs=2.0)
"""`prepare_model_for_kbit_training`, and logits copied to float32, shifted, with two gradients."""
HF_2023 = replace(HF, name="transformers 4.30 Trainer, eager attention", eager=True, eager_kept=8.0)
"""LLaMA as transformers had it then: scores in 16 bits and float32, and a maximum of them."""
AXOLOTL = Loop(name="axolotl", head_bytes=4.0)
"""Its examples compute the loss without whole logits (cut cross-entropy)."""
FSDP_QLORA = Loop(
    name="fsdp_qlora, DDP",
    trained_bytes=2.0,
    gradient_bytes=2.0,
    moment_bytes=4.0,
    autocast=False,
    cast_inputs="",
    head_bytes=16.0,
)
