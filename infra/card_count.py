"""Tells by its size how many cards a machine has."""

from __future__ import annotations

from infra.catalog.gpus import several_cards
from infra.catalog.vendors import find_size
from infra.local.sizes import cards_of
from infra.provider import Vm


def card_count(vm: Vm) -> int:
    """Return how many whole cards a machine has; 1 for a size that nobody knows."""
    size = find_size(vm.size, provider=vm.provider)
    return max(1, int(size.gpu_count)) if size is not None else cards_of(vm.size)


def cards_text(vm: Vm) -> str:
    """Name the cards of a machine that has several, for people; empty for one."""
    size = find_size(vm.size, provider=vm.provider)
    return several_cards(size.gpu if size is not None else "", card_count(vm))
