"""What EC2 refuses in the parameters of `RunInstances` before it looks at the market; pure."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from ec2.replies import AwsError
from ec2.tagging import check_specifications

USER_DATA_BYTES_MAX = 16384
TOKEN_CHARS_MAX = 64
LEAST_CAP = 0.001


def check_run(parameters: Mapping[str, Any], *, now_s: float) -> None:
    """Raise EC2's error for parameters that cannot go together, or are wrong by themselves."""
    if not 1 <= parameters["MinCount"] <= parameters["MaxCount"]:
        raise AwsError("InvalidParameterValue", "MinCount must be from 1 to MaxCount")
    if parameters["MaxCount"] != 1:
        raise AwsError("InstanceLimitExceeded", "One machine at a time in this account")
    if not parameters.get("ImageId"):
        message = "The request must contain the parameter ImageId"
        raise AwsError("MissingParameter", message)
    kinds = ("instance", "volume", "network-interface")
    spot = parameters.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    check_specifications(parameters, *kinds, *(["spot-instances-request"] if spot else []))
    token = parameters.get("ClientToken", "")
    if len(token) > TOKEN_CHARS_MAX or not token.isascii():
        raise AwsError("InvalidParameterValue", "ClientToken is at most 64 ASCII characters")
    _check_user_data(parameters.get("UserData", ""))
    _check_network(parameters)
    _check_spot(parameters, now_s=now_s)


def _check_user_data(text: str) -> None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = "Invalid BASE64 encoding of user data."
        raise AwsError("InvalidUserData.Malformed", message) from error
    if len(raw) > USER_DATA_BYTES_MAX:
        message = f"User data is limited to {USER_DATA_BYTES_MAX} bytes"
        raise AwsError("InvalidUserData.Malformed", message)


def _check_network(parameters: Mapping[str, Any]) -> None:
    interfaces = parameters.get("NetworkInterfaces", [])
    if interfaces:
        for name, words in (
            ("SubnetId", "an instance-level subnet ID"),
            ("SecurityGroupIds", "instance-level security groups"),
            ("SecurityGroups", "instance-level security groups"),
        ):
            if parameters.get(name):
                message = f"Network interfaces and {words} may not be specified on the same request"
                raise AwsError("InvalidParameterCombination", message)
        if [one.get("DeviceIndex") for one in interfaces] != list(range(len(interfaces))):
            message = "Each network interface requires a device index."
            raise AwsError("InvalidParameterValue", message)
    if parameters.get("SecurityGroups"):
        message = "The parameter groupName cannot be used with the parameter subnet"
        raise AwsError("InvalidParameterCombination", message)


def _check_spot(parameters: Mapping[str, Any], *, now_s: float) -> None:
    market = parameters.get("InstanceMarketOptions", {})
    options = market.get("SpotOptions", {})
    if options and market.get("MarketType") != "spot":
        raise AwsError("InvalidParameterCombination", "SpotOptions need MarketType spot")
    if not options:
        return
    _check_cap(options.get("MaxPrice"))
    persistent = options.get("SpotInstanceType") == "persistent"
    behavior = options.get("InstanceInterruptionBehavior", "terminate")
    if persistent and behavior == "terminate":
        message = "Persistent Spot requests need the interruption behavior stop or hibernate."
        raise AwsError("InvalidParameterCombination", message)
    if not persistent and behavior != "terminate":
        message = f"The interruption behavior {behavior} needs a persistent Spot request."
        raise AwsError("InvalidParameterCombination", message)
    if behavior == "hibernate":
        raise AwsError("UnsupportedOperation", "This instance type does not support hibernation.")
    if (
        behavior == "stop"
        and parameters.get("InstanceInitiatedShutdownBehavior", "stop") == "terminate"
    ):
        raise AwsError(
            "InvalidParameterCombination",
            "The instanceInitiatedShutdownBehavior 'terminate' is not supported when "
            "instanceInterruptionBehavior is set to 'stop'.",
        )
    until = options.get("ValidUntil")
    if until is not None and not persistent:
        raise AwsError("InvalidParameterCombination", "ValidUntil needs a persistent request.")
    if until is not None and until.timestamp() <= now_s:
        raise AwsError("InvalidParameterValue", "ValidUntil must be in the future.")


def _check_cap(text: str | None) -> None:
    if text is None:
        return
    try:
        cap = float(text)
    except ValueError:
        cap = math.nan
    if not LEAST_CAP < cap < math.inf:
        message = f"Invalid value '{text}' for parameter maxPrice: more than {LEAST_CAP}"
        raise AwsError("InvalidParameterValue", message)
