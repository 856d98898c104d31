"""Finds the image that a machine boots, by AWS's own parameters, and what it asks of the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.aws.context import AwsContext
from infra.errors import NotAllowed, SignedOut
from infra.untrusted import table, text, whole

PLAIN_UBUNTU = "ubuntu"
"""The value of `vm.aws.image` that takes Ubuntu without a driver."""
GIB_MAX = 64 * 1024
"""The largest volume that EC2 has, so the largest image."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where AWS or Canonical publish the newest image of one kind."""

    description: str
    parameters: Sequence[str]
    """Public parameters of Systems Manager that hold the id of the newest image, best first."""
    owner: str
    """The account that publishes it: images of that name by anybody else are not it."""
    name_pattern: str
    """What its name looks like, for accounts that may not read parameters."""


DEEP_LEARNING = ImageSource(
    description="AWS's deep-learning base image (Ubuntu with NVIDIA's driver)",
    parameters=tuple(
        f"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-{release}"
        "/latest/ami-id"
        for release in ("24.04", "22.04")
    ),
    owner="898082745236",
    name_pattern="Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 2*",
)
UBUNTU = ImageSource(
    description="Canonical's Ubuntu 24.04",
    parameters=(
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    ),
    owner="099720109477",
    name_pattern="ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*",
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of one region, fit for a spot machine that can be stopped."""

    id: str
    name: str
    root_device: str
    """The device that its disk must be, such as `/dev/sda1`."""
    size_gb: int
    """The smallest disk that holds it, in GiB."""


def read_image(row: Mapping[str, Any]) -> Image:
    """Read a row of `DescribeImages`. Raises `NotAllowed` for an image that could not serve."""
    id_ = text(row.get("ImageId")) or ""
    root = text(row.get("RootDeviceName")) or ""
    sizes = [
        whole(table(one.get("Ebs")).get("VolumeSize"), most=GIB_MAX)
        for one in map(table, row.get("BlockDeviceMappings") or [])
        if one.get("DeviceName") == root
    ]
    problem = ""
    if row.get("State", "available") != "available":
        problem = f"it is {text(row.get('State'))}"
    elif row.get("Architecture", "x86_64") != "x86_64":
        problem = f"it is for {text(row.get('Architecture'))}, and these machines are x86_64"
    elif str(row.get("Platform", "")).lower() == "windows":
        problem = "it is Windows"
    elif row.get("RootDeviceType", "ebs") != "ebs" or not root or not sizes or not sizes[0]:
        problem = "its root is no EBS volume, so that a machine with it cannot be stopped"
    if problem or not id_:
        raise NotAllowed(
            f"the image `{id_}` cannot be used: {problem or 'it has no id'}",
            hint="`vm.aws.image` names another one; without it qft takes AWS's own",
        )
    return Image(id=id_, name=text(row.get("Name")) or "", root_device=root, size_gb=sizes[0] or 0)


def newest(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of `DescribeImages` that was made last; None without any."""
    return max(rows, key=lambda one: str(one.get("CreationDate", "")), default=None)


@dataclass(frozen=True, kw_only=True)
class ImageFinder:
    """Resolves the setting `vm.aws.image` in one region."""

    context: AwsContext

    def find(self, region: str, *, pinned: str = "") -> Image:
        """Find the image to boot in `region`; `pinned` is the id that an earlier request had.

        Raises `NotAllowed` if there is none, or if the one that was named cannot serve.
        """
        chosen = self.context.settings.image
        if chosen.startswith("ami-"):
            return self._described(region, chosen)
        if pinned and (found := self._pinned(region, pinned)):
            return found
        source = UBUNTU if chosen == PLAIN_UBUNTU else DEEP_LEARNING
        return self._published(region, source)

    def _pinned(self, region: str, id_: str) -> Image | None:
        """The image that an earlier request had; None if it has been withdrawn since."""
        try:
            return self._described(region, id_)
        except SignedOut:
            raise
        except NotAllowed:
            return None

    def _published(self, region: str, source: ImageSource) -> Image:
        for parameter in source.parameters:
            id_ = self._parameter(region, parameter)
            if id_:
                return self._described(region, id_)
        rows = self.context.clients.pages(
            "ec2",
            region,
            "describe_images",
            "Images",
            doing=f"look for an image in {region}",
            Owners=[source.owner],
            Filters=[
                {"Name": "name", "Values": [source.name_pattern]},
                {"Name": "state", "Values": ["available"]},
                {"Name": "architecture", "Values": ["x86_64"]},
            ],
        )
        found = newest(rows)
        if found is None:
            raise NotAllowed(
                f"{source.description} is not published in {region}",
                hint="`vm.aws.image` names another image of that region, or take another region",
            )
        return read_image(found)

    def _parameter(self, region: str, name: str) -> str:
        """The value of a public parameter; empty if it is not there or may not be read."""
        try:
            answer = self.context.clients.call(
                "ssm", region, "get_parameter", doing=f"look up the image of {region}", Name=name
            )
        except SignedOut:
            raise
        except NotAllowed:  # not published there, or no right to read it: the list of images says
            return ""
        return text(table(answer.get("Parameter")).get("Value")) or ""

    def _described(self, region: str, id_: str) -> Image:
        answer = self.context.clients.call(
            "ec2",
            region,
            "describe_images",
            doing=f"look at the image `{id_}` in {region}",
            ImageIds=[id_],
        )
        rows = answer.get("Images") or []
        if not rows:
            raise NotAllowed(
                f"the image `{id_}` is not to be had in {region}",
                hint="images belong to one region; without `vm.aws.image` qft takes AWS's own",
            )
        return read_image(table(rows[0]))
