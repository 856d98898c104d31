"""Checks an AWS account before money is spent; each check says how to mend what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.dry_run import try_renting
from infra.aws.network import SubnetFinder
from infra.aws.permissions import (
    POLICY_NAME,
    SAFEGUARDS_POLICY_NAME,
    SPOT_ROLE,
    SPOT_ROLE_COMMAND,
    is_trusted,
    policy_commands,
    rent_policy,
    role_commands,
    safeguards_policy,
)
from infra.aws.quota import read_quota
from infra.aws.schedules import IAM_REGION, Schedules
from infra.catalog.aws import AWS
from infra.catalog.vendor import GpuSize
from infra.errors import Gone, NotAllowed, SignedOut
from infra.offer import Want
from infra.renting.caller import source_prefix
from infra.renting.checks import Check, checked
from infra.untrusted import table, text

REGIONS_MAX = 3
"""How many regions are looked at where none is named."""
NO_RUN = "-"
"""The run whose schedules are listed: none has that name, and the right to list is what counts."""
SCHEDULER_ROLE = "scheduler role"


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Looks at what the account lacks; creates nothing."""

    context: AwsContext

    def checks(self, want: Want) -> list[Check]:
        """Make every check, in the order in which they should be mended.

        Without credentials nothing further can be seen, and nothing is asked. Of several regions
        one has to be in order.
        """
        credentials, caller = self._credentials()
        if not credentials.ok:
            return [credentials]
        count = want.gpu_count
        wanted = AWS.with_cards(want.gpu, count) or AWS.with_cards("", count)
        (size, *_) = wanted or AWS.with_cards()  # of what AWS does not have
        regions = list(want.regions) or list(AWS.regions[:REGIONS_MAX])
        enabled, closed = self._enabled(regions)
        quota = [self._quota(region, size, want.nodes) for region in enabled]
        network = [self._network(region) for region in enabled]
        usable = [region for region, one in zip(enabled, network, strict=True) if one.ok]
        return [
            credentials,
            *_one_of(closed, any_ok=bool(enabled)),
            *_one_of(quota),
            self._spot_role(),
            *_one_of(network),
            *([self._renting(usable[0], size, caller)] if usable else []),
            self._scheduler(enabled[0] if enabled else AWS.regions[0], caller),
            self._address(),
        ]

    def _credentials(self) -> tuple[Check, str]:
        """Whether AWS accepts the credentials, and whose they are."""
        found: list[str] = []

        def check() -> Check:
            answer = self.context.clients.call(
                "sts", IAM_REGION, "get_caller_identity", doing="find out who is signed in"
            )
            found.append(text(answer.get("Arn")) or "")
            account = text(answer.get("Account"))
            detail = f"AWS accepts them: `{found[0]}` of the account {account}"
            return Check(name="credentials", ok=True, detail=detail)

        return checked("credentials", check), (found or [""])[0]

    def _enabled(self, regions: Sequence[str]) -> tuple[list[str], list[Check]]:
        """The regions that the account has enabled, and what is wrong with the others."""

        def look() -> Check:
            rows = self.context.clients.call(
                "ec2",
                IAM_REGION,
                "describe_regions",
                doing="list the regions of the account",
                AllRegions=True,
            )
            for row in rows.get("Regions") or []:
                status[str(row.get("RegionName"))] = str(row.get("OptInStatus"))
            return Check(name="regions", ok=True, detail="")

        status: dict[str, str] = {}
        listed = checked("regions", look)
        if not listed.ok:
            return list(regions), [replace(listed, required=False)]
        closed = [one for one in regions if status.get(one, "") == "not-opted-in"]
        unlisted = [one for one in regions if one not in status]
        return [one for one in regions if one not in {*closed, *unlisted}], [
            *(
                Check(
                    name=f"region {one}",
                    ok=False,
                    detail="the account has not enabled it",
                    fix=f"aws account enable-region --region-name {one}",
                )
                for one in closed
            ),
            *(
                Check(name=f"region {one}", ok=False, detail="AWS does not list it", fix="")
                for one in unlisted
            ),
        ]

    def _quota(self, region: str, size: GpuSize, machines: int) -> Check:
        name = f"spot quota in {region}"

        def check() -> Check:
            quota = read_quota(self.context.clients, region)
            shortage = quota.shortage(size.vcpus, machines)
            needs = f"{machines} × {size.size} need" if machines > 1 else f"{size.size} needs"
            used = f"{quota.used} of {quota.limit} vCPUs used"
            detail = f"{used}, {needs} {size.vcpus * machines}"
            fix = f"{shortage.rpartition('; ')[2]}; it takes hours to a day" if shortage else ""
            return Check(name=name, ok=not shortage, detail=detail, fix=fix)

        return checked(name, check)

    def _spot_role(self) -> Check:
        name = "spot role"

        def check() -> Check:
            role = self._role(SPOT_ROLE)
            if role is None:
                detail = f"the account has no `{SPOT_ROLE}`, which every spot machine needs"
                return Check(name=name, ok=False, detail=detail, fix=SPOT_ROLE_COMMAND)
            return Check(name=name, ok=True, detail=f"the account has `{SPOT_ROLE}`")

        found = self._seen(name, check)
        return replace(found, required=False)  # whoever may make it needs no command

    def _network(self, region: str) -> Check:
        name = f"network in {region}"

        def check() -> Check:
            subnet = SubnetFinder(context=self.context).find(region, "")
            detail = f"`{subnet.vpc}` has subnets with a route to the internet"
            return Check(name=name, ok=True, detail=detail)

        return checked(name, check)

    def _renting(self, region: str, size: GpuSize, caller: str) -> Check:
        """Whether a machine could be rented, by requests that are only tried (`DryRun`)."""
        name = "rights"
        fix = _lines(
            policy_commands(self.context.account(), caller, name=POLICY_NAME, policy=rent_policy())
        )

        def check() -> Check:
            subnet = SubnetFinder(context=self.context).find(region, "")
            try_renting(self.context, region, subnet, size)
            detail = f"machines may be rented in {region} (tried, nothing was made)"
            return Check(name=name, ok=True, detail=detail)

        found = checked(name, check)
        lacks = not found.ok and "lack the right" in found.detail
        return replace(found, fix=fix) if lacks else found

    def _scheduler(self, region: str, caller: str) -> Check:
        """Whether EventBridge Scheduler can end machines without us."""
        account, role = self.context.account(), self.context.settings.schedule_role
        policy = safeguards_policy(account, role)
        allow = policy_commands(account, caller, name=SAFEGUARDS_POLICY_NAME, policy=policy)

        def check() -> Check:
            found = self._role(role)
            if found is None or not is_trusted(found.get("AssumeRolePolicyDocument")):
                lack = "has no role" if found is None else "does not trust Scheduler with its role"
                make = role_commands(account, role, exists=found is not None)
                return Check(
                    name=SCHEDULER_ROLE,
                    ok=False,
                    detail=f"the account {lack} `{role}`, so that no schedule can stop machines"
                    " while this computer is off; they still switch themselves off",
                    fix=_lines([*make, *allow]),
                )
            Schedules(context=self.context).names(NO_RUN, region)
            detail = f"EventBridge Scheduler can stop machines by the role `{role}`"
            return Check(name=SCHEDULER_ROLE, ok=True, detail=detail)

        found = self._seen(SCHEDULER_ROLE, check, fix=_lines(allow))
        return replace(found, required=False)

    def _address(self) -> Check:
        def check() -> Check:
            address = source_prefix(self.context.caller())
            return Check(
                name="your address",
                ok=True,
                detail=f"the security group will let in {address} only",
            )

        return checked("your address", check)

    def _role(self, name: str) -> dict[str, Any] | None:
        """Look at a role of the account; None if it has none of that name."""
        try:
            answer = self.context.clients.call(
                "iam", IAM_REGION, "get_role", doing=f"look at the role `{name}`", RoleName=name
            )
        except Gone:
            return None
        return dict(table(answer.get("Role")))

    def _seen(self, name: str, check: Callable[[], Check], *, fix: str = "") -> Check:
        """Make a check; one that this caller has no right to make says so."""

        def allowed() -> Check:
            try:
                return check()
            except SignedOut:
                raise
            except NotAllowed as error:
                return Check(
                    name=name, ok=False, detail=f"not known: {error}", fix=fix or error.hint
                )

        return checked(name, allowed)


def _one_of(found: Sequence[Check], *, any_ok: bool = False) -> list[Check]:
    """Checks of several regions, of which one has to be in order."""
    nowhere = not any_ok and all(one.required and not one.ok for one in found)
    return [replace(one, required=nowhere) for one in found]


def _lines(commands: Sequence[str]) -> str:
    """Commands as they stand below each other, to be pasted."""
    return "\n".join(commands)
