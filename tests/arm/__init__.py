"""A small Azure for tests: unmodified SDKs talk to it over TLS, and it keeps the bill."""

from arm.cloud import Cloud
from arm.disruptions import Disruption, DisruptionKind, throttled
from arm.hypervisor import LocalHypervisor
from arm.market import Market

__all__ = ["Cloud", "Disruption", "DisruptionKind", "LocalHypervisor", "Market", "throttled"]
