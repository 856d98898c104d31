"""Notices within a minute that a machine goes down while something long is done on it over SSH.

A machine that is taken away answers nothing, and a cut line is waited for, because most cuts pass.
So the cloud is asked at a steady pace meanwhile, and what waits is told when there is nothing left
to wait for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from infra.errors import ProviderError
from infra.provider import Provider, Vm
from infra.run.decide import is_up
from remote import errors, ssh

EVERY_S = 20.0
JOIN_S_MAX = 5.0
"""How long a question under way is waited for at the end; its answer is of no use then."""

PowerCheck = Callable[[Vm], str]
"""Why a machine is no longer up, in words; empty if it is, or if that is not known just now."""


class MachineDown(errors.RemoteError):
    """The cloud says that the machine is no longer up: there is nobody to wait for."""


def power_check(provider: Provider) -> PowerCheck:
    """Ask that provider, where machines can be taken away; nobody is asked elsewhere."""

    def ask(vm: Vm) -> str:
        try:
            seen = provider.observe(vm)
        except ProviderError:
            return ""  # such as no network: what the machine says is all there is
        return "" if is_up(seen) else f"the machine is {seen.power} ({seen.detail})"

    return ask if provider.traits.evicts else lambda _vm: ""


class PowerWatch:
    """Asks while work is done on a machine; one work at a time."""

    def __init__(
        self,
        ask: PowerCheck,
        *,
        pause: Callable[[threading.Event, float], bool] = threading.Event.wait,
        every_s: float = EVERY_S,
    ) -> None:
        self._ask = ask
        self._pause = pause
        """Waits so many seconds for the end of the work; whether it has come."""
        self._every_s = every_s
        self._down = ""
        self._made: ssh.SshConnection | None = None
        """A connection that set-up made in the place of one that was cut."""

    @contextlib.contextmanager
    def over(self, vm: Vm, cut: Callable[[], None]) -> Iterator[None]:
        """Watch over the work inside; `cut` ends the connection that it may be waiting on.

        Raises `MachineDown` in the place of whatever error the work ends with once it is known.
        """
        ended = threading.Event()
        self._down, self._made = "", None
        watcher = threading.Thread(
            target=self._watch, args=(vm, ended, cut), name="vigil", daemon=True
        )
        watcher.start()
        try:
            yield
        except errors.RemoteError as error:
            if self._down:
                raise MachineDown(self._down) from error
            raise
        finally:
            ended.set()
            watcher.join(JOIN_S_MAX)

    def connect(self, host: ssh.Host) -> ssh.SshConnection:
        """Connect again, unless it is known that nobody is there. Raises as `link.connect` does."""
        if self._down:
            raise MachineDown(self._down)
        self._made = ssh.connect(host)
        return self._made

    def _watch(self, vm: Vm, ended: threading.Event, cut: Callable[[], None]) -> None:
        while not self._pause(ended, self._every_s):
            reason = self._ask(vm)
            if reason and not ended.is_set():
                self._down = reason
                cut()
                if self._made is not None:
                    self._made.close()
                return
