"""Removes a run: cancel its spot request, terminate, prove; reports what is left, with its price.

The order is what keeps the bill from beginning again. A persistent request whose instance goes
launches another one, so it is cancelled first. Schedules and alarms go last: they are what ends the
bill of a removal that was killed half-way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories, Inventory
from infra.aws.reading import NEW_S
from infra.aws.refused_requests import RefusedRequests
from infra.aws.regions import regions_to_ask
from infra.aws.removal import AGAIN, RegionRemoval
from infra.aws.safeguards import AwsSafeguards
from infra.errors import NotAllowed, ProviderError, SignedOut
from infra.provider import OnMessage, Removed, ignore_message
from infra.renting.progress import ProgressReporter
from infra.renting.run_record import RunRecord
from infra.timestamps import format_utc

GROUP_WAIT_S = 600.0
"""How long a security group may be busy after its machine went, as users report."""
MACHINE = "virtual machine"


@dataclass(frozen=True, kw_only=True)
class Deleter:
    """Removes everything of a run."""

    context: AwsContext
    safeguards: AwsSafeguards
    refused_requests: RefusedRequests

    def remove(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove everything that carries `run_id`, and return when AWS says that it is gone.

        Killed at any point it may simply be called again: what is half removed is found by its tag
        and by its id, and what a killed removal had found is still reported. Without a record here
        every region of the account is looked at. Raises `NotAllowed` for a run of another account;
        an unfinished `Transient` if something is left after `stop_wait_s` and ten minutes more.
        What refused creates left open is waited for.
        """
        removed = self.clear(run_id, on_message)
        regions = self.refused_requests.wait(run_id)
        if regions:
            removed += self._remove(run_id, regions, on_message)
            self.context.record(run_id).delete()
        return removed

    def clear(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Do as `remove` does with what is shown now: what a refused create left may come later."""
        return self._remove(run_id, [], on_message)

    def _remove(self, run_id: str, regions: Sequence[str], on_message: OnMessage) -> list[Removed]:
        """Remove what the run has in these regions; without any, wherever it has something."""
        record = self.context.record(run_id)
        account, now_s = self.context.account(), self.context.clock()
        _await_create(record, now_s)
        progress = ProgressReporter(on_message=on_message, clock=self.context.clock, began_s=now_s)
        deadline_s = now_s + self.context.settings.stop_wait_s + GROUP_WAIT_S
        try:
            for region in regions or self._regions(record, run_id):
                RegionRemoval(
                    context=self.context,
                    safeguards=self.safeguards,
                    record=record,
                    run_id=run_id,
                    region=region,
                    account=account,
                    progress=progress,
                    deadline_s=deadline_s,
                ).run()
        except KeyboardInterrupt:
            on_message(f"interrupted while removing `{run_id}`, which may bill; {AGAIN}")
            raise
        ended = format_utc(record.compute_ended_at) if record.compute_ended_at else ""
        removed = [
            Removed(kind=kind, id=id_, billed_until=ended if kind == MACHINE else "")
            for kind, id_ in record.removing
        ]
        record.close()
        return removed

    def _regions(self, record: RunRecord, run_id: str) -> list[str]:
        """Where the run has something, by this computer's record or else by its tags."""
        if record.ids.get("region"):
            return [record.ids["region"]]
        inventories = Inventories(context=self.context)
        regions = regions_to_ask(self.context)
        answers = inventories.in_regions(regions, lambda one: inventories.search(one, run_id))
        refused: list[ProviderError] = []
        found: list[str] = []
        for region, answer in zip(regions, answers, strict=True):
            if isinstance(answer, Inventory):
                found += [region] * (not answer.is_empty)
            elif isinstance(answer, NotAllowed) and not isinstance(answer, SignedOut):
                refused.append(answer)  # such as a region that the organisation closes
            else:
                raise answer
        if len(refused) == len(regions):
            raise refused[0]
        return found


def _await_create(record: RunRecord, now_s: float) -> None:
    """Record until when a machine may appear that was requested and whose answer never came."""
    unanswered = record.requested == "create" and bool(record.pending_request)
    if unanswered and 0 <= now_s - record.requested_at < NEW_S:
        record.tokens["appears_until"] = format_utc(record.requested_at + NEW_S)
        record.save()
