"""Ends the compute of a machine before its group is removed: seconds, where that takes minutes.

A deletion of a resource group that hangs must not bill a GPU. So the machine is deallocated first;
one that is still being made is removed by force, because Azure deallocates no such machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure.context import AzureContext
from infra.azure.naming import Names
from infra.azure.operations import OperationTracker
from infra.azure.vm import power_of
from infra.errors import Gone, ProviderError, SignedOut
from infra.provider import OnMessage, PowerState
from infra.renting.run_record import RunRecord

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

RELEASE, END = "release", "end"
"""Under which names the tokens of a deallocation and of a removal by force are kept."""
COMPUTE_WAIT_S = 300.0
"""How long the release of a machine is waited for before the removal of its group is begun."""


@dataclass(frozen=True, kw_only=True)
class ComputeRelease:
    """Releases a machine's compute; the removal goes on even where that is refused."""

    context: AzureContext

    def begin(self, names: Names, record: RunRecord) -> str:
        """Order what `release` then waits for, where several machines are released at once.

        Returns under which name the order is kept; empty for none. Raises only `SignedOut`: what is
        refused now, `release` meets again.
        """
        power = self._power(names)
        if power in {PowerState.GONE, PowerState.DEALLOCATED, PowerState.FAILED}:
            return ""
        machines: Any = self.context.arm.compute.virtual_machines
        making = power is PowerState.CREATING
        key, order = (
            (END, machines.begin_delete) if making else (RELEASE, machines.begin_deallocate)
        )
        options: dict[str, Any] = {"force_deletion": True} if making else {}
        try:
            self._begin(names, record, key, order, names.group, names.vm, **options)
        except SignedOut:
            raise
        except ProviderError:
            self.context.clear_tokens(record, key)
            return ""
        return key

    def release(
        self, names: Names, record: RunRecord, on_message: OnMessage, *, begun: str = ""
    ) -> bool:
        """End the billing of compute; whether Azure says that it has ended.

        `begun` is what `begin` returned. Waits `COMPUTE_WAIT_S` at most for each of two ways.
        Raises only `SignedOut`.
        """
        power = self._power(names)
        if power in {PowerState.GONE, PowerState.DEALLOCATED}:
            return True
        if power is PowerState.FAILED:
            return False  # nothing runs in it, and it holds on to what the group's removal ends
        on_message(f"releasing the compute of `{names.vm}`")
        machines: Any = self.context.arm.compute.virtual_machines
        if power is not PowerState.CREATING and begun != END:
            where = (names.group, names.vm)
            if self._run_operation(names, record, RELEASE, machines.begin_deallocate, *where):
                on_message(f"the compute of `{names.vm}` is released")
                return True
        done = self._run_operation(
            names,
            record,
            END,
            machines.begin_delete,
            names.group,
            names.vm,
            force_deletion=True,
        )
        message = "is removed" if done else "is not released yet: the group's removal ends it, too"
        on_message(f"`{names.vm}` {message}")
        return done

    def _run_operation(
        self,
        names: Names,
        record: RunRecord,
        key: str,
        begin_operation: Any,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        """Begin or resume one operation and wait for it; whether compute ended."""
        began_s = self.context.clock()
        try:
            operation = self._begin(names, record, key, begin_operation, *args, **kwargs)
            done = self.context.wait(record, key, operation, wait_s=COMPUTE_WAIT_S)
        except SignedOut:
            raise
        except ProviderError:  # refused, busy, or its page has expired: poll the machine
            self.context.clear_tokens(record, key)
            return self._await(names, deadline_s=began_s + COMPUTE_WAIT_S)
        if done:
            ended = OperationTracker(context=self.context).here_s(
                operation.times.get("endTime"), after_s=record.requested_at
            )
            record.compute_ended_at = ended or self.context.clock()
            self.context.clear_tokens(record, key)
        return done and self._power(names) in {PowerState.GONE, PowerState.DEALLOCATED}

    def _begin(
        self,
        names: Names,
        record: RunRecord,
        key: str,
        begin_operation: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Operation:
        """Begin one operation, or take it up again."""

        def begin(token: str) -> Operation:
            more = {"continuation_token": token} if token else {}
            return self.context.arm.begin(
                f"release `{names.vm}`", begin_operation, *args, **kwargs, **more
            )

        return self.context.begin_or_resume(record, key, begin)

    def _await(self, names: Names, *, deadline_s: float) -> bool:
        """Wait while it is on its way down; whether it got there."""
        while (power := self._power(names)) is PowerState.STOPPING:
            if self.context.clock() >= deadline_s:
                return False
            self.context.sleep(self.context.settings.polling_s)
        return power in {PowerState.GONE, PowerState.DEALLOCATED}

    def _power(self, names: Names) -> PowerState:
        """Read the machine's power; `FAILED`, which promises nothing, if it cannot be read."""
        machines = self.context.arm.compute.virtual_machines
        try:
            answer = self.context.arm.call(
                "look at the machine", machines.get, names.group, names.vm, expand="instanceView"
            )
        except Gone:
            return PowerState.GONE
        except SignedOut:
            raise
        except ProviderError:
            return PowerState.FAILED
        return power_of(dict(answer))[0]
