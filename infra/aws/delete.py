"""Removes a run: cancel its spot request, terminate, prove; what is left is told with its price."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.safeguards import AwsSafeguards
from infra.provider import OnMessage, Removed, ignore_message


@dataclass(frozen=True, kw_only=True)
class Deleter:
    """Removes everything of a run."""

    context: AwsContext
    safeguards: AwsSafeguards

    def remove(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove everything that carries `run_id`, and return when AWS says that it is gone."""
        raise NotImplementedError
