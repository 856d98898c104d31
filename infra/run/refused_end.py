"""How a run ends whose machine bills when the provider refuses what the run needs."""

from __future__ import annotations

from infra.provider import ProviderError, SignedOut, Transient
from infra.run.decide import CLOUD_REFUSED
from infra.run.journal import Kind
from infra.run.state import RunEnd, RunState

RELEASE_INTENTS = {Kind.DEALLOCATE_INTENDED, Kind.DELETE_INTENDED}


def release_after(error: ProviderError, state: RunState) -> RunEnd:
    """The ending after which the machine is released, with the provider's words as the reason.

    Raises `error` again where there is nothing to release, where releasing is what was refused, and
    where the provider could not be asked: such a machine goes on with its work.
    """
    asked = not isinstance(error, Transient | SignedOut)
    if not asked or state.pending in RELEASE_INTENTS or not state.up or state.vm is None:
        raise error
    reason = f"{error}; {error.hint}" if error.hint else str(error)
    return RunEnd(code=CLOUD_REFUSED, reason=reason)
