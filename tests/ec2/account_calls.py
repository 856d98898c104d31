"""The calls of STS, Systems Manager and Service Quotas: who am I, which image, how much may I."""

from __future__ import annotations

from typing import Any

from ec2.replies import USER, ApiCall, AwsError
from ec2.state import ACCOUNT
from ec2.world import World

QUOTAS = {
    "L-3819A6DF": "All G and VT Spot Instance Requests",
    "L-DB2E81BA": "Running On-Demand G and VT instances",
}


def get_caller_identity(world: World, call: ApiCall) -> dict[str, Any]:
    """`sts:GetCallerIdentity`, which needs no right."""
    del world
    arn = f"arn:aws:iam::{ACCOUNT}:user/qft" if call.caller == USER else call.caller
    return {"UserId": "AIDAQFTSIMULATEDUSER", "Account": ACCOUNT, "Arn": arn}


def decode_authorization_message(world: World, call: ApiCall) -> dict[str, Any]:
    """`sts:DecodeAuthorizationMessage`."""
    del world, call
    return {"DecodedMessage": '{"allowed":false,"explicitDeny":false}'}


def get_parameter(world: World, call: ApiCall) -> dict[str, Any]:
    """`ssm:GetParameter`: the ids of the newest public images."""
    name = call.parameters["Name"]
    value = world.parameters.get((call.region, name))
    if value is None:
        raise AwsError("ParameterNotFound", "")
    arn = f"arn:aws:ssm:{call.region}::parameter{name}"
    return {
        "Parameter": {
            "Name": name,
            "Type": "String",
            "Value": value,
            "Version": 7,
            "LastModifiedDate": world.moment(),
            "ARN": arn,
            "DataType": "aws:ec2:image",
        }
    }


def _quota(world: World, region: str, code: str) -> dict[str, Any]:
    value = world.market.quota(region, code)
    if value is None:
        raise AwsError("NoSuchResourceException", "The request failed because the quota is unknown")
    return {
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaCode": code,
        "QuotaName": QUOTAS[code],
        "QuotaArn": f"arn:aws:servicequotas:{region}:{ACCOUNT}:ec2/{code}",
        "Value": value,
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }


def get_service_quota(world: World, call: ApiCall) -> dict[str, Any]:
    """`servicequotas:GetServiceQuota`: the limit alone, not what is used of it."""
    if call.parameters["ServiceCode"] != "ec2":
        raise AwsError("NoSuchResourceException", "The service is not simulated")
    return {"Quota": _quota(world, call.region, call.parameters["QuotaCode"])}


def list_service_quotas(world: World, call: ApiCall) -> dict[str, Any]:
    """`servicequotas:ListServiceQuotas`."""
    if call.parameters["ServiceCode"] != "ec2":
        raise AwsError("NoSuchResourceException", "The service is not simulated")
    return {"Quotas": [_quota(world, call.region, code) for code in QUOTAS]}


STS = {
    "GetCallerIdentity": get_caller_identity,
    "DecodeAuthorizationMessage": decode_authorization_message,
}
SSM = {"GetParameter": get_parameter}
SERVICE_QUOTAS = {
    "GetServiceQuota": get_service_quota,
    "ListServiceQuotas": list_service_quotas,
}
