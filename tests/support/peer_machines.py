"""Two local machines of one run, and the way from the first into the second by OpenSSH's client."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace

from infra.provider import PowerState, Vm
from support.contract import openssh_keys, wait_for
from support.local_cloud import LocalHarness
from support.nodes_contract import RUN, node_spec


def look(cloud: LocalHarness, vm: Vm) -> Vm:
    """The machine as it is listed now."""
    (found,) = [one for one in cloud.provider().list_run(vm.run_id) if one.id == vm.id]
    return found


class Peers:
    """Two machines of a run, and what it takes to get from the first into the second."""

    def __init__(self, cloud: LocalHarness) -> None:
        self.user_key, user_public = openssh_keys()
        specs = [replace(node_spec(cloud, node), public_key=user_public) for node in range(2)]
        made = [cloud.provider().create(spec) for spec in specs]
        for vm in made:
            wait_for(cloud, vm, PowerState.RUNNING)
        self.machines = [look(cloud, vm) for vm in made]
        self.homes = [cloud.root / "vms" / name / "disk" for name in (RUN, f"{RUN}.n1")]
        private, self.public = openssh_keys()
        self.folder = cloud.root.parent
        for name, text in {"owner": self.user_key, "peer": private}.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o600)
        shutil.copy(self.folder / "peer", self.homes[0] / "peer")
        other = self.machines[1]
        pinned = f"[{other.private_host}]:{other.port} {other.host_public_key}\n"
        (self.homes[0] / "known").write_text(pinned)

    def authorize(self, options: str, *, mode: int = 0o600) -> None:
        """Let the second machine admit the key of the first, with these options."""
        file = self.homes[1] / ".ssh" / "authorized_keys"
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_text(f"# a comment\n\n{options} {self.public}\n".lstrip(" "))
        file.chmod(mode)

    def ssh(self, *arguments: str, source: bool = True, program: str = "ssh") -> list[str]:
        """A command for the first machine that enters the second one at its private address."""
        here, other = self.machines
        settings = ["StrictHostKeyChecking=yes", "UserKnownHostsFile=known", "BatchMode=yes"]
        settings += ["IdentitiesOnly=yes", "IdentityAgent=none", f"Port={other.port}"]
        settings += [f"BindAddress={here.private_host}"] if source else []
        options = [word for one in settings for word in ("-o", one)]
        target = f"qft@{other.private_host}"
        return [program, "-F", "none", "-i", "peer", *options, target, *arguments]

    def run(self, command: list[str], stdin: str = "") -> tuple[int, str, str]:
        """Run a command on the first machine, through its own SSH server."""
        first = self.machines[0]
        (self.folder / "known").write_text(f"[127.0.0.1]:{first.port} {first.host_public_key}\n")
        settings = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.folder / 'known'}"]
        settings += ["BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none"]
        options = [word for one in settings for word in ("-o", one)]
        words = shlex.join(command)
        argv = ["ssh", "-F", "none", "-i", str(self.folder / "owner"), "-p", str(first.port)]
        done = subprocess.run(
            [*argv, *options, "qft@127.0.0.1", words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr
