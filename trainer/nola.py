"""NOLA: an adapter whose matrices are combinations of random bases, and whose file is a seed.

A = k^-1/2 · sum of a_i A_i and B = k^-1/2 · sum of b_i B_i over k frozen bases each; the 2k
coefficients of a layer are all that is trained and stored (Koohpayegani et al., 2024). The bases
are signs, +1 or -1, made by an integer hash of seed, layer and position: the same on every device
and under every version of torch, so a file of today can be expanded for ever.

Memory: the model holds A and B as LoRA does, but neither moments nor bases. The bases exist only
once per step on the way from coefficients to matrices (`begin`) and once on the way from the
matrices' gradients back (`gather`), at most `CHUNK` signs at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import ConfigError, MethodTable
from trainer.plan import ordinal

BASES = 256  # per matrix, unless `method.bases` says otherwise
CHUNK = 1 << 22  # signs in memory at once, 16 MB as float32
FACTS, TENSORS = "nola.json", "nola.safetensors"
PREFIX = "base_model.model."


class Combination:
    """The coefficients of a PEFT LoRA model, and the ways between them and its matrices."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        self._model = model
        self._basis = Basis(seed=seed, count=method.bases or BASES)
        self._layers = [
            (name.removeprefix(PREFIX), module)
            for name, module in sorted(model.named_modules())
            if hasattr(module, "lora_A") and "default" in module.lora_A
        ]
        for name, layer in self._layers:
            _give_coefficients(layer, name, self._basis)
        self.settle()

    def begin(self, step: int) -> None:  # noqa: ARG002 - the seam; the step changes nothing here
        """Bring the matrices to what the coefficients say."""
        self.settle()

    def gather(self) -> None:
        """Turn the matrices' gradients into those of the coefficients."""
        for name, layer in self._layers:
            for side, matrix, coefficients in _sides(layer):
                if matrix.grad is not None:
                    key = self._basis.key(name, side)
                    coefficients.grad = self._basis.project(key, matrix.grad)
                    matrix.grad = None

    def settle(self) -> None:
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
            "version": 1,
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
    the spread of PEFT's own first A, 1/sqrt(3 · columns), and B is zero. As k^-1/2 stands before
    the sums, an update of every coefficient by d moves every matrix element by about d: NOLA takes
    steps of the size that LoRA takes at the same learning rate.
    """
    first = torch.zeros(2, basis.count)
    generator = torch.Generator().manual_seed(basis.key(name, "first") >> 1)
    columns = layer.lora_A["default"].in_features
    first[0] = torch.randn(basis.count, generator=generator) / (3 * columns) ** 0.5
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
    """`count` sign matrices for every layer and side, made anew from `seed` whenever needed."""

    seed: int
    count: int

    def key(self, name: str, side: str) -> int:
        """Return the 64 bits that set one layer's bases of one side apart from all others."""
        return ordinal(self.seed, f"nola {name} {side}")

    def combine(
        self, key: int, coefficients: torch.Tensor, shape: torch.Size | tuple[int, ...]
    ) -> torch.Tensor:
        """Return count^-1/2 times the sum of coefficient times basis, of this shape."""
        size = torch.Size(shape).numel()
        total: torch.Tensor = torch.zeros(size, device=coefficients.device)
        for part, signs in self._chunks(key, size, coefficients.device):
            total += coefficients[part] @ signs
        return total.mul_(1 / math.sqrt(self.count)).reshape(shape)

    def project(self, key: int, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the coefficients, given that of the combined matrix."""
        flat = gradient.reshape(-1).float()
        parts = [signs @ flat for _, signs in self._chunks(key, flat.numel(), flat.device)]
        return torch.cat(parts).mul_(1 / math.sqrt(self.count))

    def _chunks(
        self, key: int, size: int, device: torch.device
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield slices of bases as matrices [bases, size] of +1 and -1."""
        words = -(-size // 64)
        table = _byte_signs(device)
        rows = max(1, CHUNK // (words * 64))
        for start in range(0, self.count, rows):
            stop = min(start + rows, self.count)
            at = torch.arange(start * words, stop * words, dtype=torch.int64, device=device)
            octets = _hash(at, key).view(torch.uint8).int()
            signs = table.index_select(0, octets).view(stop - start, words * 64)
            yield slice(start, stop), signs[:, :size]


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


def _byte_signs(device: torch.device) -> torch.Tensor:
    """Return [256, 8]: the bits of every byte, lowest first, 1 as +1 and 0 as -1."""
    numbers = torch.arange(256, device=device)[:, None]
    return ((numbers >> torch.arange(8, device=device)) & 1).float() * 2 - 1


def expand(directory: Path) -> dict[str, torch.Tensor]:
    """Return the matrices of a saved NOLA adapter under the names of PEFT's adapter files.

    Raises:
        ConfigError: the directory holds no such adapter, or one that is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        rank = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        rows = load_file(directory / TENSORS)["coefficients"]
        basis = Basis(seed=facts["seed"], count=facts["bases"])
        layers = [(str(name), int(columns), int(out)) for name, columns, out in facts["layers"]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError([f"{directory} holds no whole NOLA adapter: {error}"]) from error
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


def load(base: Any, directory: Path) -> Any:
    """Put a saved NOLA adapter on `base` as the LoRA that it stands for."""
    import peft

    matrices = expand(directory)
    model = peft.PeftModel(base, peft.LoraConfig.from_pretrained(str(directory)))
    outcome = peft.set_peft_model_state_dict(model, matrices)
    if outcome.unexpected_keys:
        odd = ", ".join(outcome.unexpected_keys[:3])
        raise ConfigError([f"{directory}: the base has no place for {odd}"])
    return model
