"""Looks at the machine through trouble that is not its own: no network, or nobody signed in."""

from __future__ import annotations

from collections.abc import Callable

from infra.provider import (
    Observation,
    PowerState,
    Provider,
    ProviderError,
    Rejected,
    SignedOut,
    Transient,
    Vm,
)
from infra.retry import with_retries
from infra.run.actions import Wait
from infra.run.decide import Policy, Seen, is_up

UNKNOWN_REFUSAL_S_MAX = 900.0
"""How long a look may be refused in words that nobody knows, as by a proxy on the way."""
OBSERVE_EVERY_S = 30.0
"""A pause after a cut lasts no longer than this without a look at the provider."""


class Observer:
    """Asks the provider, for hours if need be: an offline laptop must not abandon the run.

    A sign-in that ran out closes the provider's doors and not the machine's. One that had been
    answering is followed over SSH alone, its work brought home, until somebody signs in again.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        on_wait: Callable[[Seen, Wait, float], None],
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._sleep = sleep
        self._on_wait = on_wait
        self._assumed_since_s: float | None = None
        self._asked_s = 0.0
        self.warning = ""
        """What a person should know while the provider cannot be asked; else empty."""

    @property
    def assumed_up(self) -> bool:
        """Whether the last look told nothing, and the machine is only taken to be up."""
        return self._assumed_since_s is not None

    def observe(self, vm: Vm, policy: Policy, *, answers: bool) -> Observation:
        """One look; `answers` says whether the machine had been reached since it last started.

        Raises `SignedOut` for one that had not, and `Transient` or `SignedOut` once that has lasted
        for `policy.offline_max_s`; `Rejected` after `UNKNOWN_REFUSAL_S_MAX`.
        """
        began_s, pause_s = self._clock(), policy.backoff_first_s * 4
        if answers and self.assumed_up and began_s - self._asked_s < pause_s:
            return _taken_to_be_up(vm)
        while True:
            self._asked_s = self._clock()
            try:
                seen = with_retries(lambda: self._provider.observe(vm), self._sleep)
            except SignedOut as error:
                if not answers or self._lasted_s() > policy.offline_max_s:
                    raise
                self.warning = _words(error)
                return _taken_to_be_up(vm)
            except (Transient, Rejected) as error:
                most_s = (
                    policy.offline_max_s if isinstance(error, Transient) else UNKNOWN_REFUSAL_S_MAX
                )
                if self._clock() - began_s > most_s:
                    raise
                self._on_wait(
                    Seen(), Wait(wait_s=pause_s, reason=f"no news: {error}"), self._clock()
                )
                self._sleep(pause_s)
            else:
                self._assumed_since_s, self.warning = None, ""
                return seen

    def pause(self, vm: Vm | None, wait_s: float) -> None:
        """Sleep, and wake early if the machine went down: what cuts a line may be its eviction."""
        left_s = wait_s
        while left_s > 0:
            if vm is not None and self._went_down(vm):
                return
            self._sleep(min(left_s, OBSERVE_EVERY_S))
            left_s -= OBSERVE_EVERY_S

    def _went_down(self, vm: Vm) -> bool:
        """Whether the provider says so; False if it cannot be asked, or not yet."""
        try:
            return not is_up(self._provider.observe(vm))
        except ProviderError:
            return False

    def _lasted_s(self) -> float:
        """For how long nobody has been signed in."""
        if self._assumed_since_s is None:
            self._assumed_since_s = self._asked_s
        return self._asked_s - self._assumed_since_s


def _taken_to_be_up(vm: Vm) -> Observation:
    return Observation(
        power=PowerState.RUNNING, host=vm.host, port=vm.port, metadata_url=vm.metadata_url
    )


def _words(error: SignedOut) -> str:
    return (
        f"{error}; the machine goes on working and billing, and is followed without the cloud, "
        f"where nothing can end the bill now; sign in again in another terminal ({error.hint}), "
        "and this goes on by itself"
    )
