"""RMSNorm, SwiGLU and GeGLU in one pass: found by what modules return, equal to them, proved."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers as tf
from support.small_loras import recompute_activations, with_lora
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaMLP

from trainer.kernels import geglu, plain_rms_norm, rms_norm, swiglu
from trainer.kernels.candidates import make_fused_kernels
from trainer.kernels.equality import difference
from trainer.kernels.gated_mlp import Activation, GatedOps, find_names, gated
from trainer.kernels.geglu import GeGlu
from trainer.kernels.kernel_set import Card, Kernel, KernelSet
from trainer.kernels.linear_4bit import BaseLinear4bit
from trainer.kernels.rms_norm import RmsNorm, RmsNormOps
from trainer.kernels.swiglu import SwiGlu
from trainer.loss import summed_cross_entropy

CPU = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)
LAYERS = 2
FAMILIES = {
    "llama": (2 * LAYERS + 1, LAYERS, 0),
    "mistral": (2 * LAYERS + 1, LAYERS, 0),
    "qwen2": (2 * LAYERS + 1, LAYERS, 0),
    "qwen3": (4 * LAYERS + 1, LAYERS, 0),  # queries and keys are normed, too
    "phi3": (2 * LAYERS + 1, LAYERS, 0),  # gate and up in one projection
    "olmo2": (4 * LAYERS + 1, LAYERS, 0),  # multiplied before it is rounded
    "granite": (2 * LAYERS + 1, LAYERS, 0),
    "gemma": (2 * LAYERS + 1, 0, LAYERS),  # weights are distances from 1
    "gemma2": (4 * LAYERS + 1, 0, LAYERS),
    "falcon_h1": (2 * LAYERS + 1, 0, 0),  # its MLP multiplies by more numbers
}
"""Of an architecture, how many norms, SwiGLUs and GeGLUs of a model of two layers are computed."""


def make_model(family: str, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    """Return a random model of two layers with a LoRA on every linear layer."""
    more = (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mlp_multipliers": [0.5, 2.0]}
        if "h1" in family
        else {}
    )
    config = tf.AutoConfig.for_model(
        family,
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **more,
    )
    torch.manual_seed(0)
    base = tf.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype))
    base.requires_grad_(requires_grad=False)
    base.config.use_cache = False
    targets = ["gate_proj", "up_proj"] if "h1" in family else "all-linear"
    return with_lora(base, r=4, target_modules=targets, lora_dropout=dropout).train()


def make_batch() -> dict[str, torch.Tensor]:
    """Return two rows of unequal length, the second padded, every token of which is learnt from."""
    ids = torch.randint(3, 320, (2, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask.bool(), ids, -100),
    }


def loss_and_gradients(model: Any, kernels: KernelSet) -> dict[str, torch.Tensor]:
    """Return the loss of the batch and the gradient of every trained parameter."""
    model.zero_grad()
    batch = make_batch()
    with kernels.enabled(batch):
        loss = summed_cross_entropy(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    return found


def plain_kernels() -> tuple[RmsNorm, SwiGlu, GeGlu]:
    """Return these kernels, computing by their formulas in plain operations."""
    return (
        RmsNorm(lambda: rms_norm.PLAIN),
        SwiGlu(lambda: swiglu.PLAIN),
        GeGlu(lambda: geglu.PLAIN),
    )


def of_cards() -> list[Kernel]:
    """Return the kernels that are not plain operations of torch."""
    return [kernel for kernel in make_fused_kernels() if not isinstance(kernel, BaseLinear4bit)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_learns_alike_with_the_kernels(family: str) -> None:
    """Norms and MLPs are found in many architectures, and loss and gradients stay what they are."""
    model = make_model(family)
    plain = loss_and_gradients(model, KernelSet())
    kernels = plain_kernels()

    counts = tuple(kernel.prepare(model) for kernel in kernels)
    fused = loss_and_gradients(model, KernelSet(kernels=kernels))

    assert counts == FAMILIES[family]
    assert fused.keys() == plain.keys()
    assert len(plain) > 4 * LAYERS
    worst = max(plain, key=lambda name: difference(fused[name], plain[name]))
    assert difference(fused[worst], plain[worst]) < 200, worst
    again = loss_and_gradients(model, KernelSet())
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gemma"])
def test_rounding_happens_where_the_architecture_rounds(family: str) -> None:
    """In bfloat16, each norm has the bits of the module that it stands for."""
    model = make_model(family, dtype=torch.bfloat16)
    kernel = RmsNorm(lambda: rms_norm.PLAIN)
    kernel.prepare(model)
    norms = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    inputs = [torch.randn(7, norm.weight.numel()).bfloat16() for norm in norms]

    plain = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    with kernel.enabled({}):
        fused = [norm(x) for norm, x in zip(norms, inputs, strict=True)]

    assert all(torch.equal(one, other) for one, other in zip(fused, plain, strict=True))
    assert len(norms) == FAMILIES[family][0]


def test_activations_computed_again_change_no_bit() -> None:
    """With gradient checkpointing, loss and gradients have the bits that they have without."""
    model, kernels = make_model("llama"), plain_kernels()
    for kernel in kernels:
        kernel.prepare(model)
    kept = loss_and_gradients(model, KernelSet(kernels=kernels))

    recompute_activations(model)
    again = loss_and_gradients(model, KernelSet(kernels=kernels))

    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_an_adapter_and_its_hooks_inside_an_mlp_still_apply() -> None:
    """The projections of an MLP stay modules: a hook on the LoRA inside sees its passes."""
    model, kernels = make_model("llama"), plain_kernels()
    for kernel in kernels:
        kernel.prepare(model)
    seen: list[torch.Size] = []
    matrix = model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"]
    matrix.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))

    loss_and_gradients(model, KernelSet(kernels=kernels))

    assert seen == [torch.Size([2, 12, 4])]


def test_a_model_without_such_parts_is_refused_in_words() -> None:
    """A GPT-2 has none of them, and a LLaMA on a processor has no card."""
    config = tf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320)
    gpt2 = tf.GPT2LMHeadModel(config)
    model = make_model("llama")

    assert [kernel.unsuitable(gpt2, CPU) for kernel in plain_kernels()] == [
        "GPT2LMHeadModel has no frozen RMSNorm",
        "GPT2LMHeadModel has no MLP that is a SwiGLU",
        "GPT2LMHeadModel has no MLP that is a GeGLU",
    ]
    assert [kernel.unsuitable(model, CPU) for kernel in plain_kernels()] == [
        None,
        None,
        "LlamaForCausalLM has no MLP that is a GeGLU",
    ]
    assert {one.unsuitable(model, CPU) for one in of_cards()} == {"it needs a CUDA card"}


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), torch.float16, "it needs compute capability 7.5; this card has 7.0"),
        ((7, 5), torch.bfloat16, "it cannot compute in torch.bfloat16 on this card"),
        ((9, 0), torch.float64, "it cannot compute in torch.float64 on this card"),
    ],
)
def test_a_card_that_cannot_is_refused_in_words(
    capability: tuple[int, int], dtype: torch.dtype, reason: str
) -> None:
    """Too old a card, and a type that it only emulates, are named before anything is compiled."""
    card = Card(device=torch.device("cuda"), capability=capability, dtype=dtype)
    model = make_model("llama", dropout=0.1)

    assert {kernel.unsuitable(model, card) for kernel in of_cards()} == {reason}


@pytest.mark.parametrize(
    ("activation", "word"), [(swiglu.SILU, "silu"), (geglu.GELU, "gelu_pytorch_tanh")]
)
def test_an_mlp_that_drops_in_training_is_left_alone(activation: Activation, word: str) -> None:
    """What an MLP does in training counts: a dropout of its own behind the product refuses it."""
    config = tf.T5GemmaModuleConfig(
        hidden_size=32,
        intermediate_size=64,
        hidden_activation=word,
        dropout_rate=0.5,
    )
    mlp = T5GemmaMLP(config).eval()

    assert find_names(mlp, activation) is None
    mlp.dropout.p = 0.0
    assert find_names(mlp, activation) is not None
    assert not mlp.training


@pytest.mark.parametrize(
    ("dtype", "roundings"),
    [(torch.float32, 4), (torch.bfloat16, 2)],
)
def test_a_geglu_is_that_of_torch(dtype: torch.dtype, roundings: float) -> None:
    """By way of a sigmoid, GELU's tanh form and its slope are torch's, far from zero, too."""
    gate = torch.linspace(-12, 12, 400, dtype=dtype).view(4, 100).requires_grad_()
    up = torch.linspace(-2, 3, 400, dtype=dtype).view(4, 100).requires_grad_()
    exact, found = (
        (h.detach(), *torch.autograd.grad(h.sum(), [gate, up]))
        for h in (
            geglu.GELU.plain(gate.double()) * up.double(),
            gated(gate, up, geglu.PLAIN),
        )
    )

    apart = [difference(one, best.to(dtype)) for one, best in zip(found, exact, strict=True)]
    assert max(apart) <= roundings


def test_a_trained_norm_is_left_alone() -> None:
    """A norm whose weight is trained needs a gradient that the kernel does not make."""
    model = make_model("llama")
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.weight.requires_grad_()
    kernel = RmsNorm(lambda: rms_norm.PLAIN)

    assert kernel.prepare(model) == 0
    assert kernel.unsuitable(model, CPU) == "LlamaForCausalLM has no frozen RMSNorm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_formulas_pass_the_proof_of_themselves(dtype: torch.dtype) -> None:
    """Each kernel's proof accepts its own formulas in every type."""
    card = Card(device=torch.device("cpu"), capability=None, dtype=dtype)

    assert [kernel.prove(card) for kernel in plain_kernels()] == [None, None, None]


def test_a_wrong_kernel_fails_its_proof() -> None:
    """A norm without its eps term, a slope without its sign, a sum that varies: each is named."""

    def no_mean(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        return plain_rms_norm.plain_backward(dy, x, weight, *rest) + 1e-3 * dy

    def flipped(dh: torch.Tensor, *rest: torch.Tensor) -> None:
        swiglu.PLAIN.backward(-dh, *rest)

    calls: list[int] = []

    def unsteady(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return swiglu.PLAIN.forward(gate, up) * (1 + 1e-7 * (len(calls) % 2))

    norm = partial(RmsNormOps, forward=plain_rms_norm.plain_forward, backward=no_mean)
    slope = partial(GatedOps, forward=swiglu.PLAIN.forward, backward=flipped)
    sums = partial(GatedOps, forward=unsteady, backward=swiglu.PLAIN.backward)
    other = partial(GatedOps, forward=geglu.PLAIN.forward, backward=swiglu.PLAIN.backward)

    problems = [
        kernel.prove(CPU) for kernel in (RmsNorm(norm), SwiGlu(slope), SwiGlu(sums), GeGlu(other))
    ]

    assert str(problems[0]).startswith("dx of RMSNorm 1x64 in torch.float32 is ")
    assert "the gradient of gate of SwiGLU 1x64, split" in str(problems[1])
    assert "has other bits when it is computed again" in str(problems[2])
    assert "the gradient of gate of GeGLU 1x64, split" in str(problems[3])


def test_a_distance_is_measured_in_roundings_of_the_type() -> None:
    """One step of bfloat16 beside 1 is about half a rounding; infinities must be the same ones."""
    one = torch.ones(4, dtype=torch.bfloat16)
    step = one.clone()
    step[0] += torch.finfo(torch.bfloat16).eps
    infinite = one.clone()
    infinite[1] = float("inf")

    assert difference(one, one) == 0.0
    assert 0.4 < difference(step, one) <= 0.5
    assert difference(infinite, infinite) == 0.0
    assert difference(infinite, one) != difference(infinite, one)  # NaN
