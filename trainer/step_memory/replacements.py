"""Replaces operations that need values, which a fake tensor has not, or that hide what they make.

Of bitsandbytes, only the results are known to torch; here its operations make what they make inside
(bitsandbytes 0.50, `backends/cuda/ops.py`, `backends/default/ops.py`, `backends/cpu/ops.py`).
"""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.step_memory.storages import Operation, Replacement, StorageTracker


class NotCountableError(Exception):
    """The step asks for values that only real tensors have."""


@dataclass
class Values:
    """What a step would find in its tensors."""

    padded: bool = False
    """Whether rows of a batch differ in length."""
    head_results: deque[weakref.ref[Any]] = field(default_factory=lambda: deque(maxlen=2))
    """The storages that the head returned last."""


def replacements(values: Values, *, cuda: bool) -> dict[str, Replacement]:
    """Return what is done instead of operations, by the names of these."""
    return {
        "aten::_local_scalar_dense": _value_of(values),
        "aten::equal": _equal(values),
        "aten::index": _index,
        "aten::index_put": _write,
        "aten::index_put_": _write,
        "aten::_index_put_impl_": _write,
        "aten::_grouped_mm": _grouped_product,
        "bitsandbytes::gemm_4bit": _gemm_4bit,
        "bitsandbytes::int8_vectorwise_quant": _int8_quantise,
        "bitsandbytes::int8_vectorwise_dequant": _int8_dequantise,
        "bitsandbytes::int8_mixed_scaled_mm": _int8_product,
        "bitsandbytes::optimizer_update_32bit": _update_32bit(cuda=cuda),
        "bitsandbytes::optimizer_update_8bit_blockwise": _update_8bit(cuda=cuda),
    }


def _value_of(values: Values) -> Replacement:
    """One for a number; for a condition, whether no row is padded, which is what models ask."""

    def value(_: StorageTracker, __: Operation, args: Sequence[Any], ___: Mapping[str, Any]) -> Any:
        kind = args[0].dtype
        if kind is torch.bool:
            return not values.padded
        return 1.0 if kind.is_floating_point else 1

    return value


def _equal(values: Values) -> Replacement:
    """Whether logits are what the head returned: the only comparison that a step makes."""

    def equal(_: StorageTracker, __: Operation, args: Sequence[Any], ___: Mapping[str, Any]) -> Any:
        storage = args[1].untyped_storage()
        return any(one() is storage for one in values.head_results)

    return equal


def _mask_in(indices: Sequence[Any]) -> torch.Tensor | None:
    return next((one for one in indices if one is not None and one.dtype is torch.bool), None)


def _index(
    _: StorageTracker, func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Take what indices say; how much a mask chooses is in its values."""
    mask = _mask_in(args[1])
    if mask is not None:
        raise NotCountableError(f"a mask of {tuple(mask.shape)} chooses what is computed")
    return func(*args, **kwargs)


def _write(
    _: StorageTracker, func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Write to the positions that a mask chooses: nothing changes its size."""
    if _mask_in(args[1]) is None:
        return func(*args, **kwargs)
    return args[0] if func._schema.name.endswith("_") else args[0].clone()  # type: ignore[attr-defined]


def _grouped_product(
    _: StorageTracker, __: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Multiply rows with the matrix of their expert; torch knows the size for bfloat16 only."""
    left, right = args[:2]
    kind = kwargs.get("out_dtype") or left.dtype
    groups = (args[2] if len(args) > 2 else kwargs["offs"]).shape[0]
    if left.dim() == right.dim() == 2:
        return left.new_empty((groups, left.shape[0], right.shape[1]), dtype=kind)
    return left.new_empty((*left.shape[:-1], right.shape[-1]), dtype=kind)


def _gemm_4bit(
    tracker: StorageTracker, _: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Dequantise the whole weight and multiply; few tokens have a kernel that does without.

    That kernel is left out: the backward pass dequantises the same weight in any case.
    """
    inputs, _packed, shape = args[:3]
    scales = kwargs.get("absmax_8bit")
    if scales is not None:
        first = tracker.note(torch.empty_like(scales, dtype=torch.float32))
        scales = tracker.note(torch.empty_like(first))
        del first
    weight = tracker.note(inputs.new_empty(tuple(shape)))
    result = tracker.note(inputs.new_empty((*inputs.shape[:-1], shape[0])))
    del weight, scales
    return result


def _int8_quantise(
    tracker: StorageTracker, _: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Quantise rows of activations; that a column stands out is left out, they are few."""
    inputs = args[0]
    threshold = args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
    scales = tracker.note(inputs.new_empty(inputs.numel() // inputs.shape[-1], dtype=torch.float32))
    result = tracker.note(torch.empty_like(inputs, dtype=torch.int8))
    if not threshold:
        return result, scales, None
    lengths = tracker.note(torch.empty_like(inputs))
    large = tracker.note(torch.empty_like(inputs, dtype=torch.bool))
    del lengths, large
    return result, scales, inputs.new_empty(0, dtype=torch.int64)


def _int8_dequantise(
    tracker: StorageTracker, _: Operation, args: Sequence[Any], __: Mapping[str, Any]
) -> Any:
    """Multiply by the scales, then by a constant: two float32 copies at once."""
    first = tracker.note(torch.empty_like(args[0], dtype=torch.float32))
    second = tracker.note(torch.empty_like(first))
    del first
    return second


def _int8_product(
    tracker: StorageTracker, _: Operation, args: Sequence[Any], __: Mapping[str, Any]
) -> Any:
    """Multiply to int32, scale to float16, and convert to the type of the inputs."""
    inputs, packed, weight = args[:3]
    shape = (*packed.shape[:-1], weight.shape[0])
    whole = tracker.note(packed.new_empty(shape, dtype=torch.int32))
    result = tracker.note(packed.new_empty(shape, dtype=torch.float16))
    if inputs.dtype is not torch.float16:
        result = tracker.note(result.to(inputs.dtype))
    del whole
    return result, tracker.note(inputs.new_empty(0))


def _update_32bit(*, cuda: bool) -> Replacement:
    """Update in place; the version for CPUs makes three float32 copies."""
    return _update(copies=0 if cuda else 3)


def _update_8bit(*, cuda: bool) -> Replacement:
    return _update(copies=0 if cuda else 5)


def _update(*, copies: int) -> Replacement:
    def update(
        tracker: StorageTracker, _: Operation, args: Sequence[Any], __: Mapping[str, Any]
    ) -> None:
        made = [tracker.note(torch.empty_like(args[1])) for _ in range(copies)]
        del made

    return update
