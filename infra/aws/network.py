"""Chooses the subnet of a machine, and checks its way to the internet; creates nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import NoDefaultVpcError, NotYetVisibleError
from infra.errors import NotAllowed, Rejected
from infra.untrusted import table, text

EVERYWHERE = "0.0.0.0/0"


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet, which decides the zone of a machine."""

    id: str
    zone: str
    vpc: str


def read_subnet(row: Mapping[str, Any]) -> Subnet:
    """Read a row of `DescribeSubnets`."""
    return Subnet(
        id=text(row.get("SubnetId")) or "",
        zone=text(row.get("AvailabilityZone")) or "",
        vpc=text(row.get("VpcId")) or "",
    )


def route_problem(tables: Iterable[Mapping[str, Any]], *, region: str) -> tuple[str, str]:
    """Why machines with these route tables cannot be reached, and the command that mends it.

    Empty if a route to an internet gateway takes everything that is not local: a NAT gateway lets
    a machine out, and nobody in.
    """
    found = list(tables)
    routes = [table(one) for row in found for one in row.get("Routes") or []]
    for one in routes:
        gateway = str(one.get("GatewayId", ""))
        is_default = one.get("DestinationCidrBlock") == EVERYWHERE
        if is_default and gateway.startswith("igw-") and one.get("State", "active") == "active":
            return "", ""
    id_ = (text(found[0].get("RouteTableId")) if found else "") or "TABLE"
    fix = (
        f"`aws ec2 create-route --region {region} --route-table-id {id_}"
        f" --destination-cidr-block {EVERYWHERE} --gateway-id GATEWAY`, where `aws ec2"
        f" describe-internet-gateways --region {region}` lists the gateways; or name another"
        " subnet under `vm.aws.subnet`"
    )
    return "its routes lead to no internet gateway", fix


@dataclass(frozen=True, kw_only=True)
class SubnetFinder:
    """Finds the subnet in which a machine can be rented and reached; creates nothing."""

    context: AwsContext

    def find(self, region: str, zone: str, *, mates: str = "") -> Subnet:
        """Find the subnet for a zone: that of `mates`, the one that was named, or the default one.

        Without a zone, that of the first default subnet is taken. Raises `NotAllowed` where an
        account has no network that could serve, `Rejected` where only this zone has none.
        """
        named = mates or self.context.settings.subnet
        found = self._named(region, zone, named) if named else self._default(region, zone)
        problem, fix = route_problem(self._route_tables(region, found), region=region)
        if problem:
            raise NotAllowed(
                f"nobody could reach a machine in the subnet `{found.id}` of {region}: {problem}",
                hint=fix,
            )
        return found

    def _named(self, region: str, zone: str, named: str) -> Subnet:
        elsewhere = "`vm.regions` and `vm.aws.subnet` have to name one place"
        try:
            rows = self._subnets(region, SubnetIds=[named])
        except NotYetVisibleError as error:
            raise Rejected(f"the subnet `{named}` is not in {region}", hint=elsewhere) from error
        if not rows:
            raise Rejected(f"the subnet `{named}` is not in {region}", hint=elsewhere)
        found = read_subnet(rows[0])
        if zone and found.zone != zone:
            raise Rejected(f"the subnet `{named}` is in {found.zone}, not in {zone}", hint="")
        return found

    def _default(self, region: str, zone: str) -> Subnet:
        filters = [{"Name": "default-for-az", "Values": ["true"]}]
        if zone:
            filters.append({"Name": "availability-zone", "Values": [zone]})
        rows = self._subnets(region, Filters=filters)
        if rows:
            return min(map(read_subnet, rows), key=lambda one: one.zone)
        vpcs = self.context.clients.call(
            "ec2",
            region,
            "describe_vpcs",
            doing=f"look for the default VPC of {region}",
            Filters=[{"Name": "is-default", "Values": ["true"]}],
        )
        if not vpcs.get("Vpcs"):
            raise NoDefaultVpcError(
                f"the region {region} has no default VPC, so a machine there has no network",
                hint=f"`aws ec2 create-default-vpc --region {region}` (free), or name a subnet"
                " with a route to the internet under `vm.aws.subnet`",
            )
        raise Rejected(
            f"the default VPC of {region} has no default subnet in {zone or 'any zone'}",
            hint="`aws ec2 create-default-subnet --region"
            f" {region} --availability-zone {zone or 'ZONE'}` (free), or take another zone",
        )

    def _subnets(self, region: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.context.clients.pages(
            "ec2",
            region,
            "describe_subnets",
            "Subnets",
            doing=f"look for a subnet in {region}",
            **parameters,
        )

    def _route_tables(self, region: str, subnet: Subnet) -> list[dict[str, Any]]:
        """The table of the subnet; where it has none of its own, the main one of its VPC."""
        own = [{"Name": "association.subnet-id", "Values": [subnet.id]}]
        main = [
            {"Name": "vpc-id", "Values": [subnet.vpc]},
            {"Name": "association.main", "Values": ["true"]},
        ]
        for filters in (own, main):
            rows = self.context.clients.pages(
                "ec2",
                region,
                "describe_route_tables",
                "RouteTables",
                doing=f"look at the routes of `{subnet.id}`",
                Filters=filters,
            )
            if rows:
                return rows
        return []
