"""Builds the first-boot data of an Azure machine, with eviction notices and self-release."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from infra.azure import deallocate_self
from infra.azure.api_versions import API_VERSIONS
from infra.azure.naming import VM
from infra.renting.first_boot import cloud_config, one_file

CUSTOM_DATA_BYTES_MAX = 65_535
"""Azure's limit, counted before base64."""
PRIME_NOTICES = (
    'nohup sh -c \'curl -s -m 180 --noproxy "*" -H Metadata:true'
    ' "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"\''
    " >/dev/null 2>&1 &"
)
"""The first request switches eviction notices on, and may take two minutes to be answered: sent at
boot, they flow by the time training starts."""


def custom_data(
    *, host_private_key: str, host_public_key: str, self_release_arguments: Sequence[str] = ()
) -> str:
    """Build the base64 `customData` that makes cloud-init install exactly this ed25519 host key.

    `customData` is returned neither by ARM nor by the metadata service; `userData` would be, to
    every process. With `self_release_arguments`, the machine also runs `self_release_text` with
    those arguments.

    Raises ValueError if the document outgrows Azure's limit.
    """
    text = cloud_config(
        host_private_key=host_private_key,
        host_public_key=host_public_key,
        boot_commands=[PRIME_NOTICES],
        self_release_text=self_release_text() if self_release_arguments else "",
        self_release_arguments=self_release_arguments,
    )
    if len(text) > CUSTOM_DATA_BYTES_MAX:
        message = f"first-boot data of {len(text)} bytes exceeds Azure's {CUSTOM_DATA_BYTES_MAX}"
        raise ValueError(message)
    return base64.b64encode(text).decode()


def self_release_text() -> str:
    """Compose the program with which a machine deallocates itself, as it is shipped: one file."""
    text = one_file(Path(deallocate_self.__file__))
    return text.replace(deallocate_self.API_VERSION, API_VERSIONS[VM], 1)
