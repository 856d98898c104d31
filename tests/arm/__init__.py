"""A small Azure for tests: unmodified SDKs talk to it over TLS, and it keeps the bill."""

from arm.cloud import Cloud
from arm.faults import Fault, Weather, throttled
from arm.guests import LocalGuests
from arm.market import Market

__all__ = ["Cloud", "Fault", "LocalGuests", "Market", "Weather", "throttled"]
