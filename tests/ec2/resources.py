"""What can exist in the simulated account: machines, spot requests, disks and networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STATE_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}
"""The number that EC2 gives for each state of an instance."""


@dataclass(kw_only=True)
class Ec2Resource:
    """Anything with an id, tags and a place."""

    id: str
    region: str
    tags: dict[str, str] = field(default_factory=dict)
    born_s: float = 0.0


@dataclass(kw_only=True)
class Notice:
    """An interruption that EC2 has announced to a machine."""

    action: str
    """`stop` or `terminate`."""
    at_s: float
    """When it happens."""


@dataclass(kw_only=True)
class Instance(Ec2Resource):
    """One machine."""

    zone: str
    size: str
    image_id: str
    subnet_id: str
    vpc_id: str
    group_ids: list[str]
    volume_id: str
    interface_id: str
    parameters: dict[str, Any]
    """What `RunInstances` was asked for."""
    reservation_id: str
    request_id: str = ""
    """The spot request that launched it; empty for one on demand."""
    state: str = "pending"
    launch_s: float = 0.0
    """When it was last started, by whomever."""
    launches: int = 0
    private_ip: str = ""
    public_ip: str = ""
    reason_code: str = ""
    reason_message: str = ""
    transition: str = ""
    notice: Notice | None = None
    """Shown by the metadata service while it is ahead."""
    rebalance_s: float | None = None
    """When EC2 recommended to rebalance; shown by the metadata service."""

    @property
    def user_data(self) -> str:
        """The user data as it was sent: base64."""
        return str(self.parameters.get("UserData", ""))

    @property
    def metadata_options(self) -> dict[str, Any]:
        """How the metadata service is open to the machine."""
        usual = {"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"}
        return usual | dict(self.parameters.get("MetadataOptions", {}))


@dataclass(kw_only=True)
class SpotRequest(Ec2Resource):
    """One spot request."""

    zone: str
    size: str
    parameters: dict[str, Any]
    """What `RunInstances` was asked for, to launch again from."""
    type: str = "one-time"
    behavior: str = "terminate"
    cap: float | None = None
    valid_until_s: float | None = None
    state: str = "open"
    status: str = "pending-evaluation"
    status_s: float = 0.0
    instance_id: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it can launch something, now or later."""
        return self.state in {"open", "active", "disabled"}


@dataclass(kw_only=True)
class Volume(Ec2Resource):
    """One disk."""

    zone: str
    size_gb: int
    kind: str
    encrypted: bool
    snapshot_id: str
    instance_id: str = ""
    device: str = "/dev/sda1"
    goes_with_instance: bool = True


@dataclass(kw_only=True)
class NetworkInterface(Ec2Resource):
    """The network interface of one machine."""

    subnet_id: str
    vpc_id: str
    group_ids: list[str]
    instance_id: str
    private_ip: str
    has_public_ip: bool


@dataclass(kw_only=True)
class SecurityGroup(Ec2Resource):
    """One security group; rules are what `IpPermissions` holds."""

    name: str
    description: str
    vpc_id: str
    ingress: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Vpc(Ec2Resource):
    """One network."""

    is_default: bool
    cidr: str = "172.31.0.0/16"


@dataclass(kw_only=True)
class Subnet(Ec2Resource):
    """One subnet, which is in one zone."""

    vpc_id: str
    zone: str
    cidr: str
    default_for_zone: bool
    gives_public_ip: bool


@dataclass(kw_only=True)
class RouteTable(Ec2Resource):
    """One route table; the main one of its network unless it names subnets."""

    vpc_id: str
    gateway_id: str
    """Where 0.0.0.0/0 goes; empty for nowhere."""
    subnet_ids: list[str] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether every subnet that has no table of its own uses it."""
        return not self.subnet_ids


@dataclass(kw_only=True)
class Image(Ec2Resource):
    """One machine image."""

    name: str
    owner_id: str
    created: str
    size_gb: int
    snapshot_id: str
    state: str = "available"
