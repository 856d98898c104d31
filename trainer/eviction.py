"""Sets a flag with a deadline when the machine is about to be taken away.

Two sources: the vendor's metadata service, polled once a second, and SIGTERM. Neither stops
anything by itself: the loop reads the flag where the state is whole.
"""

from __future__ import annotations

import http.client
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from trainer.notices.aws import AwsNotices
from trainer.notices.azure import AzureNotices
from trainer.notices.metadata import NoticeApi

POLL_S = 1.0
CALL_S_MAX = 10.0
EVICTION_NOTICE = "eviction notice"
"""The reason of a notice that the vendor gave."""
SIGTERM_S = 10.0  # what service managers usually leave before SIGKILL
NOTICE_APIS: Mapping[str, Callable[[str], NoticeApi]] = MappingProxyType(
    {"azure": AzureNotices, "aws": AwsNotices}
)
"""How each vendor announces evictions, by what `--metadata-api` names; made from a base URL."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """The machine goes away at `deadline_s` of the monotonic clock, for the reason given."""

    deadline_s: float
    reason: str


OF_PEER = "notice to card"
"""How the reason of a notice begins that came to another rank."""


class PreemptionFlag:
    """Set by whoever hears of the end, read by the loop; of several notices the nearest counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._notice: Notice | None = None
        self._save_requested = False

    @property
    def notice(self) -> Notice | None:
        """The notice of the nearest end, or None as long as nothing was heard."""
        return self._notice

    @property
    def seconds_left(self) -> float:
        """Seconds until the announced end, infinite without a notice, possibly negative."""
        return self._notice.deadline_s - self.clock() if self._notice else float("inf")

    @property
    def save_requested(self) -> bool:
        """Whether one extra checkpoint is wanted, because the machine may go away soon."""
        return self._save_requested

    def request_save(self) -> None:
        """Request one extra checkpoint; training goes on."""
        self._save_requested = True

    def set(self, *, seconds_left: float, reason: str) -> None:
        """Announce the end. Takes no lock, so a signal handler may call it."""
        notice = Notice(deadline_s=self.clock() + seconds_left, reason=reason)
        if self._notice is None or notice.deadline_s < self._notice.deadline_s:
            self._notice = notice


def is_of_peer(flag: PreemptionFlag) -> bool:
    """Tell whether the only notice that there is came to another rank."""
    return flag.notice is not None and flag.notice.reason.startswith(OF_PEER)


@contextmanager
def on_signals(flag: PreemptionFlag) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `flag` while inside; a second SIGINT interrupts at once."""

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGINT and flag.notice is not None:
            raise KeyboardInterrupt
        flag.set(seconds_left=SIGTERM_S, reason=signal.Signals(number).name)

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(kw_only=True)
class MetadataPoll:
    """Asks the metadata service once a second from a daemon thread, until it is closed."""

    url: str
    flag: PreemptionFlag
    now: Callable[[], datetime]
    on_message: Callable[[str], None]  # hears when the service falls silent
    api: str = "azure"  # a key of `NOTICE_APIS`
    poll_s: float = POLL_S
    first_call_s_max: float | None = None  # None: as long as the vendor needs

    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self) -> None:
        """Begin to ask; the slow first call does not hold up the caller."""
        threading.Thread(target=self._run, name="eviction-poll", daemon=True).start()

    def close(self) -> None:
        """Stop asking; a call under way is left to end by itself."""
        self._closed.set()

    def _run(self) -> None:
        api, silent = NOTICE_APIS[self.api](self.url), False
        timeout_s = self.first_call_s_max or api.first_call_s_max
        while not self._closed.is_set() and self.flag.notice is None:
            try:
                announced = api.announced(self.now(), timeout_s=timeout_s)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not silent:
                    self.on_message(f"eviction notices cannot be heard: {error}; asking on")
                silent = True
            else:
                timeout_s, silent = CALL_S_MAX, False
                if announced.seconds_left is not None:
                    self.flag.set(seconds_left=announced.seconds_left, reason=EVICTION_NOTICE)
                elif announced.rebalance and not self.flag.save_requested:
                    self.on_message("this machine may be taken away soon: saving a checkpoint")
                    self.flag.request_save()
            self._closed.wait(self.poll_s)
