"""Machines and offers as the journal holds them: plain JSON values, and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from infra.provider import Offer, PowerState, Vm


def vm_from_json(data: dict[str, Any]) -> Vm:
    """Rebuild a machine from a journal line; unknown keys of later versions are ignored."""
    known = {field.name for field in fields(Vm)}
    values = {key: value for key, value in data.items() if key in known}
    return Vm(**{**values, "power": PowerState(values.get("power", PowerState.CREATING))})


def offer_from_json(data: dict[str, Any]) -> Offer:
    """Rebuild an offer from a journal line; unknown keys of later versions are ignored."""
    known = {field.name for field in fields(Offer)}
    return Offer(**{key: value for key, value in data.items() if key in known})


def to_json(value: Vm | Offer) -> dict[str, Any]:
    """What the journal holds of a machine or an offer."""
    return asdict(value)
