"""A client that dies before or after a chosen request, as `kill -9` would have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.azure.sdk import PatientTransport
from infra.azure.settings import AzureSettings


class KilledError(BaseException):
    """The process is dead: nothing of ours may catch this, and nothing runs after it."""


class MortalTransport(PatientTransport):
    """Dies around request number `at` (from 1); with 0 it only counts."""

    def __init__(
        self,
        settings: AzureSettings,
        sleep: Callable[[float], None],
        *,
        at: int = 0,
        answered: bool = False,
    ) -> None:
        super().__init__(settings, sleep)
        self.at = at
        self.answered = answered
        """Whether the request still reaches the cloud, and only its answer is lost."""
        self.sent: list[str] = []

    def send(self, request: Any, **options: Any) -> Any:
        """Send one request, unless it is the last thing this process did not live to do."""
        self.sent.append(f"{request.method} {request.url}")
        if len(self.sent) != self.at:
            return super().send(request, **options)
        if self.answered:
            super().send(request, **options)
        raise KilledError
