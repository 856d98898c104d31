"""Tracks how the last request to create, start or release a machine ended, by its operation.

Azure accepts such an order within seconds and may refuse it minutes later. Neither the caller's
wait nor the state of the machine decides then, but the operation, whose continuation token is
on the disk: so it is known after a restart of this program, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import errors as seam_errors
from infra.azure.context import AzureContext
from infra.azure.errors import AzureErrorInfo, translate
from infra.azure.naming import Names
from infra.azure.vm import failure_of, last_finished_at
from infra.errors import Gone, NoCapacity, ProviderError, SignedOut, Transient
from infra.renting.run_record import RunRecord
from infra.timestamps import format_utc, parse_utc_s

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

KEYS = {"create": "vm", "start": "start", "deallocate": "deallocate"}
"""Under which name the token of each order is kept."""
APART_S = 5.0
"""The `Date` of an answer has whole seconds, and the answer itself takes a while."""


@dataclass(frozen=True, kw_only=True)
class OperationTracker:
    """Reads how operations ended, and records it."""

    context: AzureContext

    def follow(self, names: Names, record: RunRecord) -> bool:
        """Poll an operation under way once; whether it still is. Never raises.

        Its end, good or bad, is in the record afterwards.
        """
        key = KEYS.get(record.requested, "")
        token = record.tokens.get(key, "")
        if not token or record.generation != names.generation:
            return False
        operation = self._resume(names, record.requested, token)
        try:
            done = operation.wait(wait_s=0)
        except ProviderError as error:
            if isinstance(error, Transient | SignedOut) and not operation.over:
                return True  # nothing is known: so it may still be
            if not isinstance(error, Gone):  # then its page has expired: read the machine
                record.refusal = [error.kind, str(error), error.hint]
        else:
            self.learn(record, operation, done=done)
            if not done:
                return True
        self.context.clear_tokens(record, key)
        return False

    def learn(self, record: RunRecord, operation: Operation, *, done: bool) -> None:
        """Record when Azure says that an operation began and ended, by this computer's clock."""
        began = self.here_s(operation.times.get("startTime"), after_s=record.requested_at)
        record.began_at = began or record.began_at
        if done:
            ended = self.here_s(operation.times.get("endTime"), after_s=record.requested_at)
            record.ended_at = ended or self.context.clock()
        record.save()

    @staticmethod
    def has_run(record: RunRecord) -> bool | None:
        """Whether the machine ran after it was last created or started; None if unrecorded."""
        granted = record.requested in {"create", "start"} and record.ended_at and not record.refusal
        return True if granted else None

    def refusal(
        self, names: Names, record: RunRecord, answer: dict[str, Any]
    ) -> ProviderError | None:
        """The error of the last create or start that failed; None if it did not, or nobody knows.

        What this computer does not remember, the machine's own last failure says.
        """
        mine = record.generation == names.generation
        if mine and record.requested in {"create", "start"} and record.refusal:
            name, message, hint = [*record.refusal, "", "", ""][:3]
            kind: Any = getattr(seam_errors, str(name), None)
            exists = isinstance(kind, type) and issubclass(kind, ProviderError)
            refused: ProviderError = (kind if exists else NoCapacity)(str(message), hint=str(hint))
            return refused
        if mine and record.requested not in {"create", "start", ""}:
            return None
        code, message = failure_of(answer)
        if not code:
            return None
        doing = f"{'start' if record.requested == 'start' else 'run'} `{names.vm}`"
        return translate(AzureErrorInfo(code=code, message=message, status=200), doing=doing)

    def bills_since(self, names: Names, record: RunRecord, answer: dict[str, Any]) -> str:
        """Read since when a machine that is up bills: when Azure began to create or start it."""
        if record.generation != names.generation or record.requested not in {"create", "start"}:
            return ""
        if record.began_at:
            return format_utc(record.began_at)
        made = (answer.get("properties") or {}).get("timeCreated")
        began = (
            self.here_s(made, after_s=record.requested_at) if record.requested == "create" else None
        )
        return format_utc(began) if began else ""

    def down_since(self, record: RunRecord, answer: dict[str, Any]) -> str:
        """Read since when a machine is released that this computer asked to release."""
        ended = record.ended_at or self.here_s(
            last_finished_at(answer), after_s=record.requested_at
        )
        return format_utc(ended or record.requested_at)

    def here_s(self, text: object, *, after_s: float) -> float | None:
        """Convert a time of Azure's to this computer's clock; None if it cannot be right.

        That is later than `after_s`, when it was asked for, and not in the future. An answer's own
        date says how far the clocks are apart; one that a proxy wrote may not.
        """
        at_s, now_s = parse_utc_s(str(text or "")), self.context.clock()
        if at_s is None:
            return None
        for guess_s in (at_s - self.context.arm.raw_skew_s, at_s):
            if after_s - APART_S <= guess_s <= now_s + APART_S:
                return min(max(guess_s, after_s), now_s)
        return None

    def _resume(self, names: Names, requested: str, token: str) -> Operation:
        machines = self.context.arm.compute.virtual_machines
        begin_operation: Any = {
            "create": machines.begin_create_or_update,
            "start": machines.begin_start,
            "deallocate": machines.begin_deallocate,
        }[requested]
        body: list[Any] = [{}] if requested == "create" else []
        return self.context.arm.begin(
            f"{'rent' if requested == 'create' else requested} `{names.vm}`",
            begin_operation,
            names.group,
            names.vm,
            *body,
            continuation_token=token,
        )
