"""A small AWS for tests: unmodified botocore talks to it over HTTP, and it keeps the bill."""

from arm.disruptions import Disruption, DisruptionKind

from ec2.cloud import Ec2Cloud
from ec2.market import Market

__all__ = ["Disruption", "DisruptionKind", "Ec2Cloud", "Market"]
