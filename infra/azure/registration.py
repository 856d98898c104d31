"""Resource providers are registered by us: the SDK's own way fails for every long operation."""

from __future__ import annotations

from collections.abc import Sequence

from infra.azure.context import Account
from infra.provider import Transient

REGISTER_WAIT_S = 600.0


def ensure_registered(account: Account, namespaces: Sequence[str]) -> None:
    """Make sure that the subscription may use `namespaces`; free of charge, once per subscription.

    Raises `NotAllowed` without the right to register, `Transient` if Azure takes longer than
    `REGISTER_WAIT_S`.
    """
    providers = account.arm.resources.providers
    waiting = [one for one in namespaces if not registered(account, one)]
    for namespace in waiting:
        account.arm.call(f"register {namespace}", providers.register, namespace)
    deadline = account.clock() + REGISTER_WAIT_S
    while waiting := [one for one in waiting if not registered(account, one)]:
        if account.clock() >= deadline:
            raise Transient(
                f"Azure is still registering {', '.join(waiting)} for this subscription",
                hint="it happens once per subscription; try again in a few minutes",
            )
        account.sleep(account.settings.polling_s)


def registered(account: Account, namespace: str) -> bool:
    """Whether the subscription may use `namespace` now."""
    providers = account.arm.resources.providers
    found = account.arm.call(f"look whether {namespace} is registered", providers.get, namespace)
    return str(found.get("registrationState") or "").lower() == "registered"
