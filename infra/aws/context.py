"""Holds what all parts of the AWS provider share: SDK, clock, state folder and caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.aws.naming import check_account
from infra.aws.settings import AwsSettings
from infra.renting.run_record import RunRecord, records

if TYPE_CHECKING:
    from infra.aws.sdk import AwsClients


@dataclass(frozen=True, kw_only=True)
class AwsContext:
    """One AWS account, with the clock and the files that its parts share."""

    settings: AwsSettings
    clients: AwsClients
    state_dir: Path
    clock: Callable[[], float]
    """Seconds since 1970."""
    sleep: Callable[[float], None]
    find_address: Callable[[], str]
    """The caller's public address."""

    def account(self) -> str:
        """The number of the account that is signed in. Raises `SignedOut`."""
        return self.clients.account()

    def record(self, run_id: str) -> RunRecord:
        """Load what this computer recorded of `run_id`.

        Its `ids` hold `account`, `profile`, `region`, `zone`, `instance`, `request` and `group`, as
        far as they exist or may exist; each is on disk before it is asked for where that can be.
        Raises `NotAllowed` if the run is in another account.
        """
        record = RunRecord.load(self.state_dir, run_id)
        if record.ids.get("account"):
            check_account(record.ids["account"], self.account())
        return record

    def caller(self) -> str:
        """Find the caller's public address, as the user set it or as the world sees it."""
        return self.settings.caller_address or self.find_address()


def profiles(directory: Path) -> set[str]:
    """List the profiles with which this computer recorded a machine that is not seen removed.

    Empty for the SDK's own choice. Files beside the records, such as what was refused, name none.
    """
    return {one.ids.get("profile", "") for one in records(directory) if one.ids}
