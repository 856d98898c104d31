"""Checks an account before money is spent; each check says how to mend what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.azure.availability import usage_of
from infra.azure.context import AzureContext
from infra.azure.errors import QUOTA_PORTAL, SPOT_OFFERS
from infra.azure.permissions import (
    RELEASE_HINT,
    REMOVE,
    RENT,
    allowed,
    granted_permissions,
    may_release,
    registered,
)
from infra.catalog.azure import SPOT_QUOTA
from infra.catalog.vendor import GpuSize, folded
from infra.renting.caller import source_prefix
from infra.renting.checks import Check, checked

NAMESPACES = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab")
_SPOT_OFFERS = ("enterpriseagreement", "payasyougo", "sponsored", "csp", "mca", "microsoftcustomer")
_NO_SPOT_OFFERS = ("freetrial", "azureforstudents", "azurepass", "dreamspark", "students")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Checks the account; changes nothing."""

    context: AzureContext

    def checks(self, regions: Sequence[str], size: GpuSize, nodes: int = 1) -> list[Check]:
        """Make every check, in the order in which they should be mended, for that many machines.

        Without credentials or a subscription nothing further can be seen, and nothing is asked.
        """
        found = [self._subscription()]
        if not found[0].ok:
            return found
        found.insert(0, Check(name="credentials", ok=True, detail="Azure accepts them"))
        found.append(self._offer_type())
        found += [self._provider(namespace) for namespace in NAMESPACES]
        found += self._permissions(nodes)
        quota = [self._quota(region, size, nodes) for region in regions]
        nowhere = all(one.required and not one.ok for one in quota)  # one region's would be enough
        found += [replace(one, required=nowhere) for one in quota]
        found.append(self._caller())
        return found

    def _subscription(self) -> Check:
        def check() -> Check:
            name = str(self._facts().get("displayName") or "")
            state = str(self._facts().get("state") or "")
            return Check(
                name="subscription",
                ok=state in {"Enabled", "Warned"},
                detail=f"`{name}` ({self.context.settings.subscription_id}) is {state.lower()}",
                fix=""
                if state == "Enabled"
                else "https://portal.azure.com/#view/Microsoft_Azure_GTM",
            )

        return checked("subscription", check)

    def _facts(self) -> dict[str, Any]:
        names = self.context.names("-", 1)
        return self.context.arm.send(
            "look at the subscription",
            "GET",
            f"/subscriptions/{names.subscription_id}",
        )

    def _offer_type(self) -> Check:
        def check() -> Check:
            policies = self._facts().get("subscriptionPolicies") or {}
            quota_id = str(policies.get("quotaId") or "")
            folded_id = quota_id.lower().replace("_", "")
            bad = any(word in folded_id for word in _NO_SPOT_OFFERS)
            recognized = bad or any(word in folded_id for word in _SPOT_OFFERS)
            verdict = "cannot rent spot" if bad else "can rent spot"
            return Check(
                name="offer type",
                ok=not bad,
                detail=f"`{quota_id}` {verdict}"
                if recognized
                else f"`{quota_id}`: Azure will say on `qft up`",
                fix=f"upgrade to pay-as-you-go: {SPOT_OFFERS}" if bad else "",
            )

        return checked("offer type", check)

    def _provider(self, namespace: str) -> Check:
        needed = namespace != "Microsoft.DevTestLab"

        def check() -> Check:
            ok = registered(self.context, namespace)
            return Check(
                name=namespace,
                ok=ok,
                detail="registered" if ok else "not registered; the first `qft up` does it",
                fix="" if ok else f"az provider register --wait --namespace {namespace}",
                required=False,
            )

        return checked(namespace, check, required=needed)

    def _permissions(self, nodes: int) -> list[Check]:
        needed = RENT if nodes == 1 else (*RENT, *REMOVE)

        def rent() -> Check:
            granted = granted_permissions(self.context)
            missing = [action for action in needed if not allowed(granted, action)]
            return Check(
                name="rights",
                ok=not missing,
                detail=f"missing: {', '.join(missing)}" if missing else "may rent and remove",
                fix="ask for `Contributor` on the subscription" if missing else "",
            )

        def assign() -> Check:
            ok = may_release(self.context, granted_permissions(self.context))
            return Check(
                name="self-release",
                ok=ok,
                detail="machines may be allowed to deallocate themselves"
                if ok
                else "machines cannot deallocate themselves; auto-shutdown still holds",
                fix="" if ok else RELEASE_HINT,
                required=False,
            )

        return [checked("rights", rent), checked("self-release", assign, required=False)]

    def _quota(self, region: str, size: GpuSize, nodes: int) -> Check:
        name = f"spot quota in {region}"

        def check() -> Check:
            rows = self.context.arm.pages(
                f"read the quota of {region}",
                lambda: self.context.arm.compute.usage.list(region),
            )
            found = usage_of(rows).get(folded(SPOT_QUOTA))
            if found is None:
                return Check(name=name, ok=True, detail="not listed; Azure will say on `qft up`")
            used, limit = found
            ok = limit - used >= nodes * size.vcpus
            each = f" for each of {nodes} machines" if nodes > 1 else ""
            return Check(
                name=name,
                ok=ok,
                detail=f"{used} of {limit} vCPUs used, {size.size} needs {size.vcpus}{each}",
                fix="" if ok else f"ask for more: {QUOTA_PORTAL}",
            )

        return checked(name, check, required=False)

    def _caller(self) -> Check:
        def check() -> Check:
            return Check(
                name="your address",
                ok=True,
                detail=f"the firewall will admit {source_prefix(self.context.caller())} only",
            )

        return checked("your address", check)
