"""Every provider by name; a new one has a row here, and is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from infra.config import VmTable
from infra.provider import Provider
from infra.registration import Registration


class LocalRegistration(Registration):
    """Machines that this computer plays."""

    name = "local"

    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> Provider:
        """Make the provider; it can always work."""
        from infra.local.provider import LocalProvider, LocalSettings

        del environment
        settings = LocalSettings(
            notice_s=vm.local.notice_s,
            evict_after_s=tuple(vm.local.evict_after_s),
            vendor=vm.local.vendor,
        )
        return LocalProvider(state_dir, settings=settings)


class SshRegistration(Registration):
    """A machine of the user's own: nobody lists it but the run that uses it."""

    name = "ssh"
    lists_machines = False

    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> Provider:
        """Make the provider. Raises `ValueError` without a host key to expect."""
        from infra.ssh_host import SshHostProvider, SshHostSettings

        del environment
        if vm.ssh is None or not vm.ssh.host_key:
            raise ValueError("`vm.ssh` needs a host and its host key")
        settings = SshHostSettings(
            host=vm.ssh.host,
            port=vm.ssh.port,
            user=vm.ssh.user,
            host_public_key=vm.ssh.host_key,
        )
        return SshHostProvider(state_dir, settings)


def _azure() -> Registration:
    from infra.azure.registration import AzureRegistration

    return AzureRegistration()


def _aws() -> Registration:
    from infra.aws.registration import AwsRegistration

    return AwsRegistration()


_ROWS: Mapping[str, Callable[[], Registration]] = {
    "local": LocalRegistration,
    "azure": _azure,
    "aws": _aws,
    "ssh": SshRegistration,
}
NAMES = tuple(_ROWS)


def registration(name: str) -> Registration:
    """The provider of that name. Raises `KeyError` for none."""
    return _ROWS[name]()


def registrations() -> list[Registration]:
    """Every provider."""
    return [registration(name) for name in NAMES]
