"""A NOLA file holds coefficients and a seed, and becomes the matrices that were trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support import tiny
from support.adapters import logits
from support.rig import Rig, rig

from trainer.adapters import methods
from trainer.adapters.nola import Basis, expand, walsh
from trainer.errors import ConfigError
from trainer.results.merge import merge

BITS = (1 << 64) - 1


@pytest.fixture
def made(tmp_path: Path) -> Rig:
    """Return a NOLA training that has not begun."""
    return rig(tiny.make_run(tmp_path, method={"kind": "nola", "bases": 40, "dropout": 0.0}))


def splitmix(key: int, at: int) -> int:
    """Return 64 bits by the published algorithm, in Python's unbounded integers."""
    bits = (at * 0x9E3779B97F4A7C15 + key) & BITS
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & BITS
    return bits ^ (bits >> 31)


def sign(basis: Basis, key: int, number: int, size: int, place: int) -> int:
    """Return one element of one basis as the format says, computed without torch."""
    width = 1
    while width < max(size, basis.count):
        width *= 2
    row = (number * (key | 1) + (key >> 32)) % width
    odd = (row & place).bit_count() % 2
    random = splitmix(key, place // 64) >> (place % 64) & 1
    return (-1 if odd else 1) * (1 if random else -1)


@pytest.mark.parametrize(("size", "count"), [(150, 3), (4608, 5), (7, 30)])
def test_bases_are_what_the_format_says(size: int, count: int) -> None:
    """Every sign equals that of an independent implementation, so files stay readable."""
    basis = Basis(seed=5, count=count)
    key = basis.key("model.layers.0.mlp.up_proj", "A")
    for number in range(count):
        found = basis.combine(key, torch.eye(count)[number] * count / math.sqrt(size), (size,))

        assert found.abs().tolist() == pytest.approx([1.0] * size)
        assert found.round().int().tolist() == [
            sign(basis, key, number, size, place) for place in range(size)
        ]


def test_bases_look_random_and_are_orthogonal() -> None:
    """Bases have mean zero, are orthogonal within a side, and almost so across layers and sides."""
    basis, size = Basis(seed=0, count=16), 4608
    unit = torch.eye(16) * 16 / math.sqrt(size)
    rows = [
        torch.stack([basis.combine(basis.key(name, side), one, (size,)) for one in unit])
        for name in ("a", "b")
        for side in "AB"
    ]
    products = torch.cat(rows) @ torch.cat(rows).T / size - torch.eye(64)

    for at in range(0, 64, 16):
        assert products[at : at + 16, at : at + 16].abs().max() < 1e-5
    assert products.abs().max() < 6 / math.sqrt(size)
    assert torch.cat(rows).mean(dim=1).abs().max() < 5 / math.sqrt(size)


@pytest.mark.parametrize("size", [1, 2, 64, 256, 1 << 15])
def test_the_fast_transform_is_the_product_with_the_matrix(size: int) -> None:
    """Walsh-Hadamard of single elements gives the matrix's columns; twice gives N times all."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(size)
    one[size // 3] = 1
    column = [1 - 2 * ((place & (size // 3)).bit_count() % 2) for place in range(size)]

    assert walsh(one).int().tolist() == column
    torch.testing.assert_close(walsh(walsh(values)) / size, values, rtol=0, atol=1e-4)


def test_coefficients_get_the_gradient_of_the_sum(made: Rig) -> None:
    """The gradient that reaches a coefficient is that of autograd through the written-out sum."""
    from trainer.data.examples import collate
    from trainer.loss import summed_cross_entropy

    for name, parameter in made.state.parameters.items():  # B is not zero from here on
        generator = torch.Generator().manual_seed(len(name))
        parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    method = methods.method_of(made.context.model)
    inputs = collate(made.context.examples[:4], 3)
    method.before_step(0)
    torch.autograd.backward([summed_cross_entropy(made.context.model, inputs)])
    method.after_backward()
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    layer = made.context.model.get_submodule(prefix)
    basis = Basis(seed=0, count=40)
    key = basis.key("model.layers.1.mlp.up_proj", "B")
    stack = torch.stack([basis.combine(key, one, (64, 4)) for one in torch.eye(40)])
    free = layer.nola_B.detach().clone().requires_grad_()
    matrix = layer.lora_B["default"]
    del matrix.weight
    matrix.weight = torch.tensordot(free, stack, dims=1)
    torch.autograd.backward([summed_cross_entropy(made.context.model, inputs)])

    assert free.grad is not None
    assert (layer.nola_B.grad - free.grad).abs().max() < 1e-5 * free.grad.abs().max()


def test_training_begins_at_the_base_and_learns_as_fast_as_lora(made: Rig, tmp_path: Path) -> None:
    """The first B is zero, the first A has LoRA's spread, and a step gains as much as LoRA's.

    The gain is to first order: the step of B along the gradient that LoRA and NOLA both begin with.
    """
    plain = rig(tiny.make_run(tmp_path / "lora", method={"dropout": 0.0}))
    prefix = "base_model.model.model.layers.{}.mlp.up_proj"
    layers = [
        [one.context.model.get_submodule(prefix.format(at)) for at in (0, 1)]
        for one in (made, plain)
    ]
    spreads = [pair[0].lora_A["default"].weight.std().item() for pair in layers]
    firsts = [pair[0].lora_B["default"].weight.abs().max().item() for pair in layers]
    gains = []
    for one, pair in zip((made, plain), layers, strict=True):
        gradients = slopes(one, pair)
        one.train(until=1)
        methods.method_of(one.context.model).materialize()
        moved = [layer.lora_B["default"].weight for layer in pair]
        gains.append(
            sum(
                -(gradient * matrix).sum().item() / gradient.norm().item()
                for gradient, matrix in zip(gradients, moved, strict=True)
            )
        )

    assert firsts == [0, 0]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.5)
    assert gains[0] == pytest.approx(gains[1], rel=0.5)


def slopes(made: Rig, layers: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Return the gradients of the layers' B over the rows of the first step, before it is done."""
    from trainer.data.examples import collate
    from trainer.loss import summed_cross_entropy

    rows = [made.context.examples[row] for row in made.context.schedule.batch(0)]
    made.context.model.train()
    methods.method_of(made.context.model).before_step(0)
    torch.autograd.backward([summed_cross_entropy(made.context.model, collate(rows, 3))])
    found = []
    for layer in layers:
        gradient = layer.get_submodule("lora_B.default").weight.grad
        assert isinstance(gradient, torch.Tensor)
        found.append(gradient.clone())
    for parameter in made.state.parameters.values():
        parameter.grad = None
    return found


def test_only_coefficients_are_trained_and_saved(made: Rig, tmp_path: Path) -> None:
    """Parameters, checkpoint and file hold 2 x 40 numbers per layer; the rest is a seed."""
    made.train(until=2)
    methods.method_of(made.context.model).save(tmp_path)
    sizes = {value.shape for value in made.state.snapshot({}).adapter.values()}
    facts = json.loads((tmp_path / "nola.json").read_text())

    assert sizes == {(40,)}
    assert len(made.state.parameters) == 2 * 14
    assert (tmp_path / "nola.safetensors").stat().st_size < 14 * 2 * 40 * 4 + 200
    assert (facts["seed"], facts["bases"], len(facts["layers"])) == (0, 40, 14)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_step_that_was_given_up_leaves_no_gradient(made: Rig) -> None:
    """Passes of an abandoned step are forgotten when the next one begins."""
    from trainer.data.examples import collate
    from trainer.loss import summed_cross_entropy

    method = methods.method_of(made.context.model)
    method.before_step(0)
    torch.autograd.backward(
        [summed_cross_entropy(made.context.model, collate(made.context.examples, 3))]
    )
    method.before_step(0)
    method.after_backward()

    assert {parameter.grad for parameter in made.state.parameters.values()} == {None}


def test_a_nola_adapter_merges(made: Rig, tmp_path: Path) -> None:
    """The merged model computes what the base computes with the adapter."""
    from transformers import AutoModelForCausalLM

    made.train(until=3)
    method = methods.method_of(made.context.model)
    method.materialize()
    (tmp_path / "adapter").mkdir()
    method.save(tmp_path / "adapter")
    base = made.run_dir.parent / "model"
    merge(
        base, tmp_path / "adapter", tmp_path / "merged", dtype=None, on_message=lambda _text: None
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = logits(made.context.model, made)

    torch.testing.assert_close(logits(merged, made), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nola.json", "{}"),
        ("nola.json", "["),
        ("nola.json", '{"version": 1, "seed": 0, "bases": 40, "layers": []}'),
        ("nola.json", '{"version": 2, "seed": 0, "bases": 41, "layers": []}'),
        ("nola.safetensors", "nonsense"),
        ("adapter_config.json", "{}"),
    ],
)
def test_a_damaged_file_is_refused(made: Rig, tmp_path: Path, name: str, content: str) -> None:
    """Files that are not whole, or not of one adapter, are refused with the directory's name."""
    methods.method_of(made.context.model).save(tmp_path)
    (tmp_path / name).write_text(content)

    with pytest.raises(ConfigError, match=r"NOLA|not of one adapter"):
        expand(tmp_path)
