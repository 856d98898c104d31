"""Decides who may call what: access keys, enabled regions, the list of what is denied."""

from __future__ import annotations

import fnmatch

from ec2.policies import allowed
from ec2.protocols import Signature
from ec2.replies import USER, ApiCall, AwsError, HttpRequest
from ec2.state import ACCOUNT, State
from ec2.targets import Target, targets


def check_permissions(state: State, call: ApiCall) -> None:
    """Raise the error of the service if the caller may not do what the call asks."""
    if call.caller != USER:
        may = state.permissions.get(call.caller)
        if may is None or not may(call):
            raise refusal(call, Target(action=call.action))
        return
    for target in targets(state, call):
        if not user_may(state, target):
            raise refusal(call, target)


def user_may(state: State, target: Target) -> bool:
    """Whether the user may do an action with a resource."""
    if is_denied(state, target.action):
        return False
    return not state.policies or allowed(state.policies, target.action, target.arn, target.context)


def is_denied(state: State, action: str) -> bool:
    """Whether an action, such as `ec2:RunInstances`, was taken from the user."""
    return any(fnmatch.fnmatchcase(action, pattern) for pattern in state.denied)


def refusal(call: ApiCall, target: Target) -> AwsError:
    """The error of a service for what its caller may not do."""
    who = f"arn:aws:iam::{ACCOUNT}:user/qft" if call.caller == USER else call.caller
    words = (
        f"User: {who} is not authorized to perform: {target.action} on resource: {target.arn} "
        f"because no identity-based policy allows the {target.action} action"
    )
    if call.service == "ec2":
        blob = "CnV0Ym9keQ3l0aGluZyBlbmNvZGVk" * 4
        return AwsError(
            "UnauthorizedOperation",
            f"You are not authorized to perform this operation. {words}. "
            f"Encoded authorization failure message: {blob}",
            status=403,
        )
    if call.service in {"sts", "iam"}:
        return AwsError("AccessDenied", words, status=403)
    return AwsError("AccessDeniedException", words)


def check_caller(state: State, request: HttpRequest, signature: Signature | None) -> Signature:
    """The signature of a request whose key is valid, in a region that the account has enabled.

    Raises the error that each service has for what is wrong.
    """
    if signature is None:
        if request.header("authorization"):
            raise AwsError("SignatureDoesNotMatch", "The signature cannot be read", status=403)
        raise AwsError("MissingAuthenticationToken", "Missing Authentication Token", status=403)
    service = signature.service
    if signature.key_id in state.expired_keys:
        raise _expired(service)
    if signature.key_id not in state.keys:
        raise _not_valid(service)
    if service == "ec2" and not state.is_enabled(signature.region):
        raise _not_enabled(state.opt_in_code)
    return signature


def _expired(service: str) -> AwsError:
    words = "The security token included in the request is expired"
    if service == "ec2":
        return AwsError("RequestExpired", "Request has expired.")
    if service in {"sts", "iam"}:
        return AwsError("ExpiredToken", words, status=403)
    return AwsError("ExpiredTokenException", words)


def _not_valid(service: str) -> AwsError:
    words = "The security token included in the request is invalid."
    if service == "ec2":
        text = "AWS was not able to validate the provided access credentials"
        return AwsError("AuthFailure", text, status=401)
    if service in {"sts", "iam"}:
        return AwsError("InvalidClientTokenId", words, status=403)
    return AwsError("UnrecognizedClientException", words)


def _not_enabled(code: str) -> AwsError:
    if code == "OptInRequired":
        words = "You are not subscribed to this service. Please enable the region."
        return AwsError("OptInRequired", words, status=401)
    text = "AWS was not able to validate the provided access credentials"
    return AwsError(code, text, status=401)
