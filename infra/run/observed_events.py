"""What a provider tells of a machine as time goes by: its price now, and why it really stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from infra.provider import Observation, PowerState, Provider, StopReason, Vm
from infra.retry import with_retries
from infra.run.journal import Kind
from infra.run.state import RunState
from infra.timestamps import parse_utc_s

PRICE_EVERY_S = 300.0
PRICE_STEP_USD = 1e-6


class ObservedEvents:
    """Turns what was seen into lines for the journal, seldom enough to bother nobody."""

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._sleep = sleep
        self._price_s = 0.0
        self._explain_s = 0.0

    def events(
        self, state: RunState, vm: Vm, seen: Observation
    ) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """What should be written down after a look at the machine."""
        if seen.power is PowerState.RUNNING and state.is_unseen:
            yield Kind.RUNNING_SEEN, {"since_s": parse_utc_s(seen.bills_since)}
        yield from self._price(state, vm, seen)
        yield from self._reason(state, vm)

    def _price(
        self, state: RunState, vm: Vm, seen: Observation
    ) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """The budget counts what the market asks now, not what it asked when we rented."""
        now_s, price = self._clock(), seen.price_usd_per_h
        if price is None or not state.up or not seen.power.bills_compute:
            return
        moved = abs(price - vm.price_usd_per_h) > PRICE_STEP_USD
        if moved and now_s - self._price_s >= PRICE_EVERY_S:
            self._price_s = now_s
            yield Kind.PRICE_SEEN, {"usd_per_h": price}

    def _reason(self, state: RunState, vm: Vm) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """Why the machine really went down, once the provider's records have caught up."""
        provider, unexplained_stop, now_s = self._provider, state.unexplained_stop, self._clock()
        if unexplained_stop is None:
            return
        if not unexplained_stop.is_due(now_s, asked_s=self._explain_s):
            return
        self._explain_s = now_s
        found = with_retries(
            lambda: provider.stop_reason_from_log(
                vm, after_s=unexplained_stop.after_s, before_s=unexplained_stop.at_s
            ),
            self._sleep,
        )
        if found is not None:
            yield (
                Kind.STOP_EXPLAINED,
                {
                    "reason": found.stop_reason or StopReason.UNKNOWN,
                    "detail": found.detail,
                    "since_s": parse_utc_s(found.since),
                },
            )
