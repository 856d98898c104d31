"""Builds the user data of a machine: its host key, its one user, and the program that ends it."""

from __future__ import annotations

from infra.errors import BadRequest
from infra.provider import VmSpec
from infra.renting.first_boot import cloud_config, one_file

USER_DATA_BYTES_MAX = 16 * 1024
"""EC2's limit, counted before base64."""


def user_data(spec: VmSpec) -> str:
    """Build the cloud-config of a machine as text; the SDK encodes it.

    Every process on the machine can read it from the metadata service, and so can whoever may call
    `DescribeInstanceAttribute`: the host key in it is throwaway, and there is nothing else in it
    that is secret. Raises `BadRequest` if the document outgrows EC2's limit.
    """
    data = cloud_config(
        host_private_key=spec.host_private_key,
        host_public_key=spec.host_public_key,
        user=spec.user,
        public_key=spec.public_key,
        self_release_text=one_file(),
        self_release_arguments=["--home", f"/home/{spec.user}"],
    )
    if len(data) > USER_DATA_BYTES_MAX:
        raise BadRequest(
            f"user data of {len(data)} bytes exceeds EC2's {USER_DATA_BYTES_MAX}",
            hint="a key of the type ed25519 is shorter than one of RSA",
        )
    return data.decode()
