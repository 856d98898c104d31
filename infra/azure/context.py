"""Holds what all parts of the Azure provider share: SDKs, clock, state folder and caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.azure.naming import Names
from infra.azure.settings import AzureSettings
from infra.errors import NotAllowed, ProviderError
from infra.renting.run_record import RunRecord, records, records_of_nodes

if TYPE_CHECKING:
    from infra.azure.sdk import Arm, Operation


@dataclass(frozen=True, kw_only=True)
class AzureContext:
    """One Azure account, with the clock and the files that its parts share."""

    settings: AzureSettings
    arm: Arm
    state_dir: Path
    clock: Callable[[], float]
    """Seconds since 1970."""
    sleep: Callable[[float], None]
    find_address: Callable[[], str]
    """The caller's public address."""

    def names(self, run_id: str, generation: int, node: int = 0) -> Names:
        """Name one machine's parts; raises `NotAllowed` without a subscription."""
        subscription = self.settings.subscription_id
        if not subscription:
            raise NotAllowed(
                "no Azure subscription is chosen",
                hint="`az account list -o table`, then set AZURE_SUBSCRIPTION_ID",
            )
        return Names(subscription_id=subscription, run_id=run_id, generation=generation, node=node)

    def record(self, run_id: str, node: int = 0) -> RunRecord:
        """Load what this computer recorded of a machine of `run_id`."""
        return RunRecord.load(self.state_dir, run_id, node)

    def records_of_nodes(self, run_id: str) -> list[RunRecord]:
        """Load what this computer recorded of the run's machines beside node 0."""
        return records_of_nodes(self.state_dir, run_id)

    def caller(self) -> str:
        """Find the caller's public address, as the user set it or as the world sees it."""
        return self.settings.caller_address or self.find_address()

    def begin_or_resume(
        self, record: RunRecord, key: str, begin: Callable[[str], Operation]
    ) -> Operation:
        """Begin an operation, or take it up where a killed process left it.

        `begin` gets the continuation token, empty for a new operation. The token is on disk before
        anybody waits; `clear_tokens` removes it.
        """
        operation = begin(record.tokens.get(key, ""))
        record.tokens[key] = operation.token
        record.save()
        return operation

    def wait(self, record: RunRecord, key: str, operation: Operation, *, wait_s: float) -> bool:
        """Poll an operation for at most `wait_s`; whether it succeeded within that.

        The token of an operation that failed is forgotten: whoever tries again begins a new one,
        instead of hearing of the old failure for as long as Azure keeps its page.
        """
        try:
            return operation.wait(wait_s=wait_s)
        except ProviderError:
            if operation.over:
                self.clear_tokens(record, key)
            raise

    @staticmethod
    def clear_tokens(record: RunRecord, *keys: str) -> None:
        """Remove the tokens of operations that ended."""
        for key in keys:
            record.tokens.pop(key, None)
        record.save()


def subscriptions(directory: Path) -> set[str]:
    """List the subscriptions, in lower case, in which this computer recorded a machine.

    Whoever chooses another one afterwards should still see what the first one bills.
    """
    return set(_subscription_by_run(directory).values())


def recorded_runs(directory: Path, subscription: str) -> set[str]:
    """List the runs that this computer has begun in a subscription and not seen removed, by id."""
    wanted = subscription.lower()
    return {run_id for run_id, one in _subscription_by_run(directory).items() if one == wanted}


def _subscription_by_run(directory: Path) -> dict[str, str]:
    """The subscription, in lower case, of each run with a record."""
    return {
        one.run_id: one.ids["group"].split("/")[2].lower()
        for one in records(directory)
        if one.ids.get("group", "").startswith("/subscriptions/")
    }
