"""NOLA: an adapter whose matrices are combinations of random bases, and whose file is a seed.

A = √n/k · sum of a_i A_i and B = √n/k · sum of b_i B_i over k frozen bases of n elements each; the
2k coefficients of a layer are all that is trained and stored (Koohpayegani et al., 2024). The bases
are signs, +1 or -1: k rows of a Walsh-Hadamard matrix under random signs. So they need not be
added up one by one: a fast transform does it, at the same price for any k. Rows and signs come from
an integer hash of seed, layer and position: the same on every device and under every version of
torch, so a file of today can be expanded for ever.

Memory: the model holds A and B as LoRA does, but no moments of them. Coefficients become matrices
once per step (`before_step`), and the matrices' gradients those of the coefficients
(`after_backward`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.adapter_method import AdapterMethod
from trainer.adapters.settings import read_settings
from trainer.errors import ConfigError
from trainer.method_table import MethodTable
from trainer.schedule import derive_seed
from trainer.untrusted import parse, whole

VERSION = 2  # of the file; what version 1 described was never released
FACTOR = 128  # a transform is done as products with matrices no larger than this
FACTS, TENSORS = "nola.json", "nola.safetensors"
FACTS_BYTES_MAX = 16 << 20
PREFIX = "base_model.model."


class Nola(AdapterMethod):
    """The coefficients of a PEFT LoRA model, and the ways between them and its matrices."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        super().__init__(model, method=method, seed=seed)
        self._basis = Basis(seed=seed, count=method.combined or 1)
        self._layers = [
            (name.removeprefix(PREFIX), module)
            for name, module in sorted(model.named_modules())
            if hasattr(module, "lora_A") and "default" in module.lora_A
        ]
        for name, layer in self._layers:
            _give_coefficients(layer, name, self._basis)
        self.materialize()

    def before_step(self, step: int) -> None:  # noqa: ARG002 - the seam; the step changes nothing here
        """Bring the matrices to what the coefficients say."""
        self.materialize()

    def after_backward(self) -> None:
        """Turn the matrices' gradients into those of the coefficients."""
        for name, layer in self._layers:
            for side, matrix, coefficients in _sides(layer):
                if matrix.grad is not None:
                    key = self._basis.key(name, side)
                    coefficients.grad = self._basis.project(key, matrix.grad)
                    matrix.grad = None

    def materialize(self) -> None:
        """Make the matrices from the coefficients."""
        with torch.no_grad():
            for name, layer in self._layers:
                for side, matrix, coefficients in _sides(layer):
                    key = self._basis.key(name, side)
                    matrix.copy_(self._basis.combine(key, coefficients, matrix.shape))
                    matrix.grad = None  # of passes that were given up

    def save(self, directory: Path) -> None:
        """Write coefficients, seed, and the LoRA config that the matrices go with."""
        from safetensors.torch import save_file

        self._model.peft_config["default"].save_pretrained(str(directory))
        rows = [torch.stack([c.detach() for _, _, c in _sides(layer)]) for _, layer in self._layers]
        save_file({"coefficients": torch.stack(rows).cpu()}, directory / TENSORS)
        facts = {
            "version": VERSION,
            "seed": self._basis.seed,
            "bases": self._basis.count,
            "layers": [
                [name, layer.lora_A["default"].in_features, layer.lora_B["default"].out_features]
                for name, layer in self._layers
            ],
        }
        (directory / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _give_coefficients(layer: Any, name: str, basis: Basis) -> None:
    """Replace the layer's trained matrices by coefficients from which they are made.

    The matrices stay where PEFT looks for them, as buffers that collect gradients. The first A has
    the spread of PEFT's own first A, 1/sqrt(3 · columns), and B is zero.
    """
    first = torch.zeros(2, basis.count)
    generator = torch.Generator().manual_seed(basis.key(name, "first") >> 1)
    linear = layer.lora_A["default"]
    spread = basis.scale(linear.weight.numel()) * basis.count**0.5
    first[0] = torch.randn(basis.count, generator=generator)
    first[0] /= spread * (3 * linear.in_features) ** 0.5
    for at, (part, register) in enumerate(((layer.lora_A, "nola_A"), (layer.lora_B, "nola_B"))):
        linear = part["default"]
        weight = linear.weight.detach().clone().requires_grad_()
        del linear.weight
        linear.register_buffer("weight", weight)
        layer.register_parameter(register, torch.nn.Parameter(first[at].to(weight.device)))


def _sides(layer: Any) -> Iterator[tuple[str, torch.Tensor, torch.nn.Parameter]]:
    """Yield the name of each side of a layer, its matrix and its coefficients."""
    yield "A", layer.lora_A["default"].weight, layer.nola_A
    yield "B", layer.lora_B["default"].weight, layer.nola_B


@dataclass(frozen=True, kw_only=True)
class Basis:
    """`count` sign matrices for every layer and side, made anew from `seed` whenever needed.

    Basis i has at element p the sign D(p) · W(row(i), p): D is random, W(j, p) is -1 to the number
    of ones in the bits of j & p, and row(i) = (a·i + b) mod N with a odd, so that no two are alike.
    N is the lowest power of two that is neither below the elements nor below `count`. Up to as
    many bases as the largest power of two that divides the elements are exactly orthogonal.
    """

    seed: int
    count: int

    def key(self, name: str, side: str) -> int:
        """Return the 64 bits that set one layer's bases of one side apart from all others."""
        return derive_seed(self.seed, f"nola {name} {side}")

    def scale(self, size: int) -> float:
        """Return √n/k, what the sum of `count` bases of so many elements is multiplied by.

        It lets a learning rate mean what it means for LoRA. AdamW moves every trained number by
        about the rate. LoRA thereby gains, along a gradient g with n elements of like size, about
        lr·√n·|g|. The gradient of a coefficient under the factor s is about s·|g|, so k of them
        gain lr·k·s·|g|: as much if s is √n/k. (As far as LoRA's would the elements move with k^-½,
        but most of that way leads nowhere: the gain would be smaller by √(k/n).)
        """
        return math.sqrt(size) / self.count

    def combine(
        self, key: int, coefficients: torch.Tensor, shape: torch.Size | tuple[int, ...]
    ) -> torch.Tensor:
        """Return `scale` times the sum of coefficient times basis, of this shape."""
        size = torch.Size(shape).numel()
        spread = torch.zeros(self._width(size), device=coefficients.device)
        spread[self._rows(key, size, coefficients.device)] = coefficients.float()
        signs = _signs(key, size, coefficients.device)
        return (walsh(spread)[:size] * signs).mul_(self.scale(size)).reshape(shape)

    def project(self, key: int, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the coefficients, given that of the combined matrix."""
        flat = gradient.reshape(-1).float()
        size = flat.numel()
        spread = torch.zeros(self._width(size), device=flat.device)
        spread[:size] = flat * _signs(key, size, flat.device)
        return walsh(spread)[self._rows(key, size, flat.device)].mul_(self.scale(size))

    def _width(self, size: int) -> int:
        """Return N."""
        return 1 << (max(size, self.count) - 1).bit_length()

    def _rows(self, key: int, size: int, device: torch.device) -> torch.Tensor:
        """Return row(i) for every basis."""
        width = self._width(size)
        odd, first = (key | 1) % (width << 1), (key >> 32) % width
        return (torch.arange(self.count, device=device) * odd + first) % width


def walsh(values: torch.Tensor) -> torch.Tensor:
    """Return W · values for 2^m values: the Walsh-Hadamard matrix in Sylvester's order.

    W is the Kronecker product of small ones. Each turn multiplies the foremost axis by its small
    matrix and puts it last, so that in the end all axes are where they began.
    """
    left = values.numel()
    while left > 1:
        size = min(left, FACTOR)
        values = (_hadamard(size, values.device) @ values.reshape(size, -1)).T.reshape(-1)
        left //= size
    return values


@cache
def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    """Return the matrix of `size` x `size` signs, -1 to the number of ones in row & column."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat(
            [torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)]
        )
    return matrix.to(device)


def _signs(key: int, size: int, device: torch.device) -> torch.Tensor:
    """Return D: sign p is bit p mod 64, lowest first, of the hash at p div 64; 1 is +1, 0 is -1."""
    words = torch.arange(-(-size // 64), dtype=torch.int64, device=device)
    octets = _hash(words, key).view(torch.uint8)
    bits = octets[:, None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
    return bits.reshape(-1)[:size].float().mul_(2).sub_(1)


def _hash(at: torch.Tensor, key: int) -> torch.Tensor:
    """Return 64 random-looking bits for every integer of `at`: splitmix64 (Steele et al., 2014).

    Integers wrap around at 64 bits, as they do in torch on every device; its right shift copies the
    sign, which the masks undo.
    """
    bits = at * _signed(0x9E3779B97F4A7C15) + _signed(key)
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def _signed(value: int) -> int:
    """Return the signed integer with the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def expand(directory: Path) -> dict[str, torch.Tensor]:
    """Return the matrices of a saved NOLA adapter under the names of PEFT's adapter files.

    Raises:
        ConfigError: the directory holds no such adapter, or one that is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = parse((directory / FACTS).read_bytes(), bytes_max=FACTS_BYTES_MAX)
        version = facts["version"]
        rank = read_settings(directory).r
        rows = load_file(directory / TENSORS)["coefficients"]
        basis = Basis(seed=_count(facts["seed"]), count=_count(facts["bases"]))
        layers = [(str(name), _count(wide), _count(out)) for name, wide, out in facts["layers"]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ConfigError) as error:
        raise ConfigError([f"{directory} holds no whole NOLA adapter: {error}"]) from error
    if version != VERSION:
        raise ConfigError([f"{directory}: a NOLA file of version {version}, not {VERSION}"])
    if rows.shape != (len(layers), 2, basis.count):
        raise ConfigError([f"{directory}: {TENSORS} and {FACTS} are not of one adapter"])
    found = {}
    for (name, columns, out), pair in zip(layers, rows, strict=True):
        for side, coefficients, shape in (
            ("A", pair[0], (rank, columns)),
            ("B", pair[1], (out, rank)),
        ):
            matrix = basis.combine(basis.key(name, side), coefficients, shape)
            found[f"{PREFIX}{name}.lora_{side}.weight"] = matrix
    return found


def _count(value: object) -> int:
    """Return a whole number that was read, raise `ValueError` for anything else."""
    found = whole(value)
    if found is None:
        raise ValueError("a number in it is none")
    return found


def lora_tensors(directory: Path, rank: int | None) -> dict[str, torch.Tensor]:
    """Return the LoRA that a saved NOLA adapter stands for; it has no rank but its own.

    Raises:
        ConfigError: another rank is wanted, or the adapter is not whole.
    """
    if rank not in {None, read_settings(directory).r}:
        raise ConfigError(["--rank: the parts of a NOLA adapter cannot be separated by rank"])
    return expand(directory)
