"""Quantises every matrix of a base that is loaded in four or eight bits, and tells how much it was.

transformers 5.23 converts only layers that are exactly `torch.nn.Linear`. Falcon's are of a class
of their own that computes the same, so they would stay in 16 bits, with one line in the log; so
would the experts of a mixture, which are no layers at all (`experts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

from trainer.adapters.experts import ExpertQuantiser
from trainer.adapters.quantised_share import QuantisedShare
from trainer.errors import ConfigError
from trainer.method_table import Quant


class _Enough(Exception):  # noqa: N818 - no error, a way out
    """The empty model is there, and no more is wanted."""


@contextmanager
def all_matrices(
    storage: Quant, *, on_empty: Callable[[Any, ExpertQuantiser], bool]
) -> Iterator[ExpertQuantiser]:
    """While inside, transformers also quantises linear layers of another name, and experts.

    Layers are renamed on the still empty model, before any weight is read, so a base never lies in
    memory in 16 bits. There is no hook for this but the function that transformers calls.
    `on_empty` gets the model once its layers are the quantised ones, still empty, and with it what
    will quantise its experts; if it returns False, the block ends before a weight is read.
    """
    from transformers import integrations

    original = integrations.replace_with_bnb_linear
    experts = ExpertQuantiser()

    def replace(model: Any, *arguments: Any, **named: Any) -> Any:
        simplify(model)
        replaced = original(model, *arguments, **named)
        if storage.four_bit:
            experts.watch(model)
        if not on_empty(model, experts):
            raise _Enough
        return replaced

    integrations.replace_with_bnb_linear = replace
    try:
        with experts.within():
            yield experts
    except _Enough:
        return
    finally:
        integrations.replace_with_bnb_linear = original


def simplify(model: Any) -> int:
    """Make plain `torch.nn.Linear`s of layers that compute just that; return how many it were."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear
    ]
    plain = [module for module in found if _computes_a_linear(module)]
    for module in plain:
        module.__class__ = torch.nn.Linear
    return len(plain)


def measure(model: Any, storage: Quant, *, experts: frozenset[str] = frozenset()) -> QuantisedShare:
    """Count the weights of a model whose layers are quantised, be it empty or loaded.

    `experts` are the tensors of experts that will be quantised when they are read.
    """
    weights = quantised = matrices = quantised_matrices = 0
    seen: set[int] = set()
    head, reading = model.get_output_embeddings(), text_prefix(model)
    tied = _is_tied(model.config)
    for path, module in model.named_modules():
        if module is head and tied:
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size, in_few_bits = _size(module, name, tensor)
            in_few_bits = in_few_bits or f"{path}.{name}" in experts
            matrix = in_few_bits or (module is not head and _is_matrix(module, name, tensor))
            weights += size
            quantised += size * in_few_bits
            if matrix and path.startswith(reading):
                matrices += size
                quantised_matrices += size * in_few_bits
    return QuantisedShare(
        storage=str(storage),
        weights=weights,
        quantised=quantised,
        matrices=matrices,
        quantised_matrices=quantised_matrices,
    )


def text_prefix(model: Any) -> str:
    """Return how the names begin of the part of a model that reads text; empty if it is all of it.

    Raises:
        ConfigError: it also looks or listens, and that part cannot be told from the rest.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config() is config:
        return ""
    part = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is part), "")
    if not name:
        kind = type(model).__name__
        raise ConfigError([f"model.id: which part of a {kind} reads text cannot be told"])
    return f"{name}."


def is_router(module: Any) -> bool:
    """Tell whether it chooses experts: Llama 4 has a linear layer for that, with two results."""
    return "router" in type(module).__name__.lower()


def _is_tied(config: Any) -> bool:
    """Tell whether the head of a model is the matrix of its embeddings."""
    places = (config.get_text_config(), config)
    found = (getattr(place, "tie_word_embeddings", None) for place in places)
    return bool(next((one for one in found if one is not None), False))


def _size(module: Any, name: str, tensor: torch.Tensor) -> tuple[int, bool]:
    """Return how many weights a parameter stands for, and whether it is quantised."""
    kind = type(module).__name__
    if kind in {"Linear4bit", "Linear8bitLt"} and name == "weight":
        return module.in_features * module.out_features, True
    if kind == "ParametrizationList" and hasattr(module[0], "quant_state"):
        return module[0].quant_state.shape.numel(), True
    return tensor.numel(), False


def _is_matrix(module: Any, name: str, tensor: torch.Tensor) -> bool:
    """Tell whether vectors are multiplied by a parameter; Mamba's decays (`A_log`) are a table."""
    no_matrices = (torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    wide = sum(size > 1 for size in tensor.shape) > 1
    return wide and not isinstance(module, no_matrices) and not name.startswith("A_log")


def require_quantised(model: Any) -> int:
    """Return how many layers are quantised; raise `ConfigError` if none is."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found = sum(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules())
    if not found:
        kinds = sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__})
        reason = (
            f"method.quant: no layer of this {type(model).__name__} could be quantised (its linear "
            f"layers are {', '.join(kinds) or 'of an unknown kind'}), so it would need the memory "
            "of 16 bits; use `kind: lora`, or another base"
        )
        raise ConfigError([reason])
    return found


def _computes_a_linear(module: torch.nn.Linear) -> bool:
    """Tell whether the class of `module` computes x·Wᵀ + b and nothing else, by trying it.

    Only a layer without attributes of its own is tried, as a small twin: what it does then follows
    from its class alone.
    """
    twin = torch.nn.Linear(3, 2, bias=module.bias is not None, device="cpu", dtype=torch.float32)
    if vars(module).keys() - {"_is_hf_initialized"} != vars(twin).keys():
        return False
    if set(dict(module.named_parameters())) != set(dict(twin.named_parameters())):
        return False
    # The type is said: while a base is loaded, new tensors are of the one that it is loaded in.
    rows = [[[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]]
    inputs = torch.tensor(rows, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        expected = linear(inputs, twin.weight, twin.bias)
        twin.__class__ = type(module)
        try:
            found = twin(inputs)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False  # it wants something else than a batch of vectors
    return isinstance(found, torch.Tensor) and torch.allclose(expected, found)
