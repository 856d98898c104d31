"""Steps that tests of the simulated EC2 share: what a client of it asks, through botocore."""

from __future__ import annotations

from typing import Any

from ec2.harness import A10G, AwsHarness
from infra.aws.sdk import AwsClients

REGION = "us-east-1"
BASE_IMAGE = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
)
TAGS = [{"Key": "qft-run", "Value": "run-a"}]


class Ec2User:
    """Somebody who rents machines with botocore's own client, without any code of qft's rooms."""

    def __init__(self, harness: AwsHarness, region: str = REGION) -> None:
        self.harness = harness
        self.region = region
        self.clients: AwsClients = harness.clients()

    def call(self, operation: str, service: str = "ec2", **parameters: Any) -> dict[str, Any]:
        """Call an operation by its name in Python; one attempt, errors as `infra/errors.py`."""
        return self.clients.call(
            service, self.region, operation, doing=operation, once=True, **parameters
        )

    def image(self) -> str:
        """The id of the deep-learning image."""
        return str(self.call("get_parameter", "ssm", Name=BASE_IMAGE)["Parameter"]["Value"])

    def subnet(self, zone: str = f"{REGION}a") -> str:
        """The default subnet of a zone."""
        filters = [{"Name": "availability-zone", "Values": [zone]}]
        return str(self.call("describe_subnets", Filters=filters)["Subnets"][0]["SubnetId"])

    def group(self) -> str:
        """A security group of one's own."""
        made = self.call(
            "create_security_group",
            GroupName="qft-run-a-1",
            Description="qft",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": TAGS}],
        )
        return str(made["GroupId"])

    def body(self, zone: str = f"{REGION}a", **changes: Any) -> dict[str, Any]:
        """The parameters of `run_instances` for a persistent spot machine that stops."""
        options = {
            "MaxPrice": "0.60",
            "SpotInstanceType": "persistent",
            "InstanceInterruptionBehavior": "stop",
            **changes.pop("options", {}),
        }
        kinds = ("instance", "volume", "network-interface", "spot-instances-request")
        return {
            "ImageId": self.image(),
            "InstanceType": A10G,
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": self.subnet(zone),
            "ClientToken": "token-1",
            "UserData": "#cloud-config\n",
            "TagSpecifications": [{"ResourceType": kind, "Tags": TAGS} for kind in kinds],
            "InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": options},
            **changes,
        }

    def run(self, zone: str = f"{REGION}a", **changes: Any) -> str:
        """Launch a machine; its id."""
        answer = self.call("run_instances", **self.body(zone, **changes))
        return str(answer["Instances"][0]["InstanceId"])

    def running(self, zone: str = f"{REGION}a", **changes: Any) -> str:
        """Launch a machine and wait until it runs; its id."""
        made = self.run(zone, **changes)
        self.harness.advance(10)
        return made

    def look(self, instance_id: str) -> dict[str, Any]:
        """A machine as EC2 shows it now."""
        answer = self.call("describe_instances", InstanceIds=[instance_id])
        return dict(answer["Reservations"][0]["Instances"][0])

    def state(self, instance_id: str) -> str:
        """The name of a machine's state."""
        return str(self.look(instance_id)["State"]["Name"])

    def request(self, instance_id: str) -> tuple[str, str]:
        """State and status of the spot request that launched a machine."""
        request_id = self.look(instance_id)["SpotInstanceRequestId"]
        answer = self.call("describe_spot_instance_requests", SpotInstanceRequestIds=[request_id])
        (row,) = answer["SpotInstanceRequests"]
        return str(row["State"]), str(row["Status"]["Code"])

    def cancel(self, instance_id: str) -> None:
        """Cancel the spot request of a machine."""
        request_id = self.look(instance_id)["SpotInstanceRequestId"]
        self.call("cancel_spot_instance_requests", SpotInstanceRequestIds=[request_id])
