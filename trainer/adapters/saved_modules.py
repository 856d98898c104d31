"""Trains whole modules of the base beside the adapter (`method.save`, PEFT's `modules_to_save`).

PEFT copies each such module in the type of the base. The copy is trained in float32 like all that
is trained, and changes types at its own border, so that the layers around it see what they know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainer.errors import ConfigError

SHOWN_MAX = 12  # candidates in a message


@dataclass(frozen=True, kw_only=True)
class SavedModules:
    """The full names of modules to train whole, sorted; `tied` if two of them are one matrix."""

    names: tuple[str, ...]
    tied: bool


def find_saved(base: Any, wanted: tuple[str, ...], *, targets: list[str]) -> SavedModules:
    """Find the modules that are called `wanted`.

    A name is the last part of a module's, or its end from a dot on. Where the embedding and the
    head are one matrix, they are trained as one, and either name stands for both.

    Raises:
        ConfigError: a name fits no single layer with weights, or one that has an adapter or is
            quantised; the message lists the candidates.
    """
    found: set[str] = set()
    problems = []
    leaves = dict(_leaves(base))
    for one in wanted:
        fits = {name for name in leaves if name == one or name.endswith(f".{one}")}
        if not fits:
            candidates = _candidates(leaves, targets)
            problems.append(f"the model has no layer called {one}; it has {candidates}")
        for name in sorted(fits):
            if _is_target(name, targets):
                problems.append(f"{one} has an adapter already: leave it out of `targets`")
                break
            if not _is_floating(leaves[name]):
                problems.append(f"{one} is quantised, so it cannot be trained itself")
                break
        found |= fits
    if problems:
        raise ConfigError([f"method.save: {problem}" for problem in problems])
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if is_tied(base):
        both = {name for name, module in leaves.items() if module in (head, embedding)}
        found |= both if found & both else set()
    problems = list(_shared_elsewhere(base, found))
    if problems:
        raise ConfigError([f"method.save: {problem}" for problem in problems])
    return SavedModules(names=tuple(sorted(found)), tied=_is_tied_among(base, found))


def _shared_elsewhere(base: Any, found: set[str]) -> Iterator[str]:
    """Say which of the modules share their weights with one that would go on with the old ones.

    Only a head that is tied to its embedding is trained with it; T5's encoder and decoder have an
    embedding each of the one matrix.
    """
    trained = {base.get_submodule(name) for name in found}
    if _is_tied_among(base, found):
        trained.add(base.get_output_embeddings())
    weights = {id(one): name for name in sorted(found) for one in _weights(base, name)}
    for name, module in base.named_modules():
        shared = {id(one) for one in module.parameters(recurse=False)} & weights.keys()
        if shared and module not in trained:
            yield (
                f"{weights[shared.pop()]} shares its weights with {name}, which PEFT would leave "
                "as it is"
            )


def _weights(base: Any, name: str) -> Iterator[Any]:
    yield from base.get_submodule(name).parameters(recurse=False)


def is_tied(base: Any) -> bool:
    """Tell whether the embedding and the head of `base` are one matrix."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    return head is not None and embedding is not None and head.weight is embedding.weight


def _is_tied_among(base: Any, names: set[str]) -> bool:
    """Tell whether the modules of these names have the one matrix of the embedding and the head."""
    return is_tied(base) and base.get_input_embeddings() in map(base.get_submodule, names)


def record_saved(model: Any, saved: SavedModules) -> None:
    """Write the names into the settings that PEFT saves: it drops that of a tied head.

    Without it, PEFT would not tie the two again where the embedding is called otherwise than
    `embed_tokens` (`EMBEDDING_LAYER_NAMES`): in Falcon or GPT-2.
    """
    model.peft_config["default"].modules_to_save = [*saved.names] or None


def train_in_float32(model: Any) -> None:
    """Bring the copies of a PEFT model to float32, with the types of the base at their border."""
    for wrapper in _wrappers(model):
        copy = wrapper.modules_to_save["default"]
        outside = next(wrapper.original_module.parameters()).dtype
        copy.float()
        if outside is not torch.float32:
            copy.register_forward_pre_hook(_to_float32)
            copy.register_forward_hook(lambda _copy, _inputs, found, to=outside: found.to(to))


def _to_float32(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert what is not whole numbers."""
    return tuple(
        one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for one in inputs
    )


def _wrappers(model: Any) -> Iterator[Any]:
    """Yield what PEFT puts around a module that is trained whole."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield module


def _leaves(base: Any) -> Iterator[tuple[str, Any]]:
    """Yield every module that has weights and no modules of its own."""
    for name, module in base.named_modules():
        if name and not any(module.children()) and any(True for _ in module.parameters()):
            yield name, module


def _candidates(leaves: dict[str, Any], targets: list[str]) -> str:
    names = {
        name.rpartition(".")[2]
        for name, module in leaves.items()
        if not _is_target(name, targets) and _is_floating(module)
    }
    more = ", …" if len(names) > SHOWN_MAX else ""
    return ", ".join(sorted(names)[:SHOWN_MAX]) + more


def _is_target(name: str, targets: list[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in targets)


def _is_floating(module: Any) -> bool:
    return all(one.is_floating_point() for one in module.parameters())
