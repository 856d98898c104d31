"""Resource providers are registered by us: the SDK's own way fails for every long operation."""

from __future__ import annotations

from collections.abc import Sequence

from infra.azure.context import AzureContext
from infra.provider import Transient

REGISTER_WAIT_S = 600.0


def ensure_registered(context: AzureContext, namespaces: Sequence[str]) -> None:
    """Make sure that the subscription may use `namespaces`; free of charge, once per subscription.

    Raises `NotAllowed` without the right to register, `Transient` if Azure takes longer than
    `REGISTER_WAIT_S`.
    """
    providers = context.arm.resources.providers
    waiting = [one for one in namespaces if not registered(context, one)]
    for namespace in waiting:
        context.arm.call(f"register {namespace}", providers.register, namespace)
    deadline = context.clock() + REGISTER_WAIT_S
    while waiting := [one for one in waiting if not registered(context, one)]:
        if context.clock() >= deadline:
            raise Transient(
                f"Azure is still registering {', '.join(waiting)} for this subscription",
                hint="it happens once per subscription; try again in a few minutes",
            )
        context.sleep(context.settings.polling_s)


def registered(context: AzureContext, namespace: str) -> bool:
    """Whether the subscription may use `namespace` now."""
    providers = context.arm.resources.providers
    found = context.arm.call(f"look whether {namespace} is registered", providers.get, namespace)
    return str(found.get("registrationState") or "").lower() == "registered"
