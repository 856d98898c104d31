"""Strict reading of request bodies: what the SDK's own models do not know, the cloud refuses."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import enum
import functools
import re
import types
import typing
from typing import Any

from azure.mgmt.compute import models as compute_models

from arm.replies import ArmError

OPEN_ENUMS = frozenset({"VirtualMachineSizeTypes"})
"""The SDK's list of sizes lacks every modern GPU; the service takes what it sells."""


def check(body: Any, model: type, module: types.ModuleType) -> None:
    """Refuse a body as ARM does: unknown members, wrong types, missing or malformed ones."""
    errors = schema_errors(body, model, module)
    if errors:
        raise ArmError(400, "InvalidRequestContent", f"Could not find member: {'; '.join(errors)}")


def schema_errors(body: Any, model: type, module: types.ModuleType, path: str = "$") -> list[str]:
    """Everything in `body` that the model does not admit; empty for a good one."""
    if not isinstance(body, dict):
        return [f"{path}: expected an object, not {type(body).__name__}"]
    members = _members(model, module)
    errors = []
    for key, value in body.items():
        if key not in members:
            errors.append(f"{path}.{key}: unknown member of {model.__name__}")
        elif not members[key].read_only:  # read-only members are ignored, as ARM does
            errors += _errors_in_value(value, members[key].hint, module, f"{path}.{key}")
    errors += [
        f"{path}.{key}: required member of {model.__name__} is missing"
        for key, member in members.items()
        if member.required and key not in body
    ]
    return errors


class _Member(typing.NamedTuple):
    hint: Any
    read_only: bool
    required: bool


@functools.cache
def _members(model: type, module: types.ModuleType) -> dict[str, _Member]:
    """Wire name to type of every member, from the metadata that the SDK serialises with."""
    made: Any = model
    made({})  # the models describe themselves when first made
    names = {**vars(module), "_models": module, "datetime": dt}
    hints = typing.get_type_hints(model, names, names)
    found = {}
    for attribute, field in made._attr_to_rest_field.items():
        hint = hints[attribute]
        read_only = field._visibility == ["read"]
        optional = type(None) in typing.get_args(hint)
        found[field._rest_name] = _Member(hint, read_only, not optional and not read_only)
    return found


_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    dt.datetime: (str,),
    bytes: (str,),
}


def _errors_in_value(value: Any, hint: Any, module: types.ModuleType, path: str) -> list[str]:
    if value is None:
        return []
    choices = [one for one in _union(hint) if one is not type(None)]
    enums = [one for one in choices if isinstance(one, type) and issubclass(one, enum.Enum)]
    if enums:
        return _errors_in_enum(value, enums[0], path)
    kind = choices[0]
    origin = typing.get_origin(kind)
    if origin is list:
        return _errors_in_list(value, typing.get_args(kind)[0], module, path)
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{path}: expected an object"]
        item = typing.get_args(kind)[1]
        return [
            error
            for key, one in value.items()
            for error in _errors_in_value(one, item, module, f"{path}.{key}")
        ]
    if isinstance(kind, type) and hasattr(kind, "_attr_to_rest_field"):
        return schema_errors(value, kind, module, path)
    wanted = _PLAIN.get(kind)
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool)):
        return [f"{path}: expected {kind.__name__}, not {type(value).__name__}"]
    return []


def _union(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return typing.get_args(hint)
    return (hint,)


def _errors_in_enum(value: Any, kind: type[enum.Enum], path: str) -> list[str]:
    if not isinstance(value, str):
        return [f"{path}: expected a word of {kind.__name__}"]
    if kind.__name__ in OPEN_ENUMS or value.lower() in {str(one.value).lower() for one in kind}:
        return []
    return [f"{path}: {value!r} is no {kind.__name__}"]


def _errors_in_list(value: Any, item: Any, module: types.ModuleType, path: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{path}: expected a list"]
    return [
        error
        for index, one in enumerate(value)
        for error in _errors_in_value(one, item, module, f"{path}[{index}]")
    ]


@functools.cache
def forbidden_users() -> frozenset[str]:
    """The administrator names that Azure refuses, as the SDK's own model tells them."""
    text = str(compute_models.OSProfile.__doc__).partition(":ivar admin_username:")[2]
    listed = text.partition("Disallowed values:")[2].partition("<br>")[0]
    names = frozenset(re.findall(r'"([^"]+)"', listed))
    assert "administrator" in names
    return names


def check_machine(body: dict[str, Any]) -> None:
    """The rules for a machine that no schema tells."""
    if not body.get("location"):
        raise ArmError(400, "LocationRequired", "The location property is required.")
    properties = body.get("properties") or {}
    disk = (properties.get("storageProfile") or {}).get("osDisk") or {}
    if not disk.get("createOption"):
        raise _invalid("osDisk.createOption", "Required parameter is missing (null).")
    user = properties.get("osProfile") or {}
    name = str(user.get("adminUsername") or "")
    if not name or name.lower() in forbidden_users() or len(name) > 64:
        raise _invalid("adminUsername", f"The Admin Username specified is not allowed: {name!r}.")
    if len(str(user.get("computerName") or "")) > 64:
        raise _invalid("computerName", "Linux host name cannot exceed 64 characters in length.")
    _check_custom_data(user.get("customData"))
    linux = user.get("linuxConfiguration") or {}
    for key in (linux.get("ssh") or {}).get("publicKeys") or []:
        if key.get("path") != f"/home/{name}/.ssh/authorized_keys":
            raise _invalid("ssh.publicKeys.path", f"Destination path must be in /home/{name}.")
        if not str(key.get("keyData") or "").startswith(("ssh-rsa ", "ssh-ed25519 ")):
            raise _invalid("ssh.publicKeys.keyData", "The key is not a supported SSH public key.")
    if linux.get("disablePasswordAuthentication") and not linux.get("ssh"):
        raise _invalid("linuxConfiguration", "Authentication using either SSH or password needed.")


def _check_custom_data(text: Any) -> None:
    if text is None:
        return
    try:
        data = base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise _invalid("customData", "Custom data must be a base64 encoded string.") from error
    if len(data) > 65_535:
        raise _invalid("customData", "Custom data exceeds the maximum of 65535 bytes.")


def _invalid(target: str, message: str) -> ArmError:
    return ArmError(400, "InvalidParameter", f"{message} (target: {target})")
