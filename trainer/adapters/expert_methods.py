"""Says which methods can adapt the experts of a mixture; no library is needed for that."""

from __future__ import annotations

from collections.abc import Collection

from trainer.method_table import MethodKind, MethodTable

UNADAPTABLE = (
    MethodKind.DORA,
    MethodKind.QDORA,
    MethodKind.DYLORA,
    MethodKind.QDYLORA,
    MethodKind.NOLA,
    MethodKind.MISS,
)
"""The kinds that have no form for experts: PEFT's DoRA, and our own two, which act on layers."""


def expert_problem(
    method: MethodTable, *, experts: Collection[str], layers: Collection[str]
) -> str | None:
    """Return why a method cannot adapt a mixture, None if it can, or need not.

    `experts` are the last parts of the names of its experts' tensors, `layers` those of the linear
    layers that could be adapted instead.
    """
    wanted = method.targets == "all-linear" or set(method.targets) & set(experts)
    if not experts or not wanted:
        return None
    if method.kind in UNADAPTABLE:
        reason = f"method.kind: {method.kind} cannot adapt the experts of a mixture"
    elif method.dropout:
        reason = "method.dropout: PEFT has no dropout in front of experts; set `dropout: 0`"
    else:
        return None
    others = ", ".join(sorted(layers)) or "none"
    return f"{reason}; or name the layers to adapt without experts: `targets: [{others}]`"
