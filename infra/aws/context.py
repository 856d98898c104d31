"""Holds what all parts of the AWS provider share: SDK, clock, state folder and caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.aws.naming import check_account, record_name, run_of_record
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

    def record(self, run_id: str, node: int = 0) -> RunRecord:
        """Load what this computer recorded of a machine of `run_id`: each node has a file.

        Its `ids` hold `account`, `profile`, `region`, `zone`, `instance`, `request` and `group`, as
        far as they exist or may exist; each is on disk before it is asked for where that can be.
        `left` names further regions in which a shared group stayed. Raises `NotAllowed` if the run
        is in another account.
        """
        record = RunRecord.load(self.state_dir, record_name(run_id, node))
        if record.ids.get("account"):
            check_account(record.ids["account"], self.account())
        return record

    def nodes_on_record(self, run_id: str) -> list[int]:
        """The nodes beside node 0 of which this computer has a record, in order."""
        return nodes_on_record(self.state_dir, run_id)

    def caller(self) -> str:
        """Find the caller's public address, as the user set it or as the world sees it."""
        return self.settings.caller_address or self.find_address()


def nodes_on_record(directory: Path, run_id: str) -> list[int]:
    """The nodes of a run beside node 0 of which there is a record in a folder, in order."""
    found = directory.glob(f"{run_id}.*.json") if directory.is_dir() else []
    parsed = [run_of_record(one.stem) for one in found]
    return sorted({node for run, node in parsed if run == run_id and node})


def profiles(directory: Path) -> set[str]:
    """List the profiles with which this computer recorded a machine that is not seen removed.

    Empty for the SDK's own choice. Files beside the records, such as what was refused, name none.
    """
    return {one.ids.get("profile", "") for one in records(directory) if one.ids}
