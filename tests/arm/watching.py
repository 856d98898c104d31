"""Machines that look after themselves: first-boot data starts the watchdog, with an identity.

The script, its unit file and its arguments are those that travelled in `customData`; the metadata
service hands out tokens of the machine's own identity; what they allow is up to the cloud.
"""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from arm import roles
from arm.cloud import Cloud
from arm.guests import LocalGuests
from arm.replies import Reply, Request
from arm.world import Resource

UNIT = "/etc/systemd/system/qft-watch.service"
SSH_WAIT_S = 30.0


@dataclass
class WatchedGuests(LocalGuests):
    """Local guests whose first-boot data may start the watchdog. Set `cloud` once there is one."""

    hurry: tuple[str, ...] = ()
    """Further arguments of the watchdog, for tests without an hour to wait."""
    cloud: Cloud | None = None
    watchers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    services: dict[str, MetadataWithIdentity] = field(default_factory=dict)

    def boot(self, vm: Resource, host: str, *, outbound: bool) -> None:
        """Switch on, and start what the first-boot data made a service of the machine."""
        super().boot(vm, host, outbound=outbound)
        threading.Thread(target=self.watch, args=(vm,), daemon=True).start()

    def halt(self, vm: Resource) -> None:
        """Pull the plug: the watchdog stops with everything else."""
        super().halt(vm)
        self.unwatch(vm)

    def unwatch(self, vm: Resource) -> None:
        """End the watchdog alone."""
        watcher = self.watchers.pop(vm.id, None)
        if watcher is not None:
            watcher.kill()
            watcher.wait()

    def remove(self, vm: Resource) -> None:
        """The machine is gone, and its metadata service with it."""
        self.halt(vm)
        service = self.services.pop(vm.id, None)
        if service is not None:
            service.close()
        super().remove(vm)

    def close(self) -> None:
        """End everything that still runs."""
        for watcher in self.watchers.values():
            watcher.kill()
            watcher.wait()
        for service in self.services.values():
            service.close()
        super().close()

    def watch(self, vm: Resource) -> None:
        """Play systemd for the one service, once SSH answers."""
        argv = self.command(vm)
        if argv is None or self.cloud is None:
            return
        machine = self.machines[vm.id]
        deadline = time.monotonic() + SSH_WAIT_S
        while not machine.look().ssh_port and time.monotonic() < deadline:
            time.sleep(0.05)
        if vm.id not in self.services:
            self.services[vm.id] = MetadataWithIdentity(
                identity=lambda request: self._identity(request, vm.id),
                port_of=lambda: machine.look().metadata_port,
            )
        argv += ["--imds", self.services[vm.id].url, "--ssh-port", str(machine.look().ssh_port)]
        environment = {"SSL_CERT_FILE": str(self.cloud.server.ca_file)}
        with (machine.directory / "watch.log").open("ab") as log:
            self.watchers[vm.id] = subprocess.Popen(
                [*argv, *self.hurry], env=environment, stderr=log
            )

    def command(self, vm: Resource) -> list[str] | None:
        """What the unit file starts, with this computer's interpreter; None if there is none."""
        text = base64.b64decode(vm.properties["osProfile"]["customData"]).decode()
        document = json.loads(text.removeprefix("#cloud-config\n"))
        files = {one["path"]: one["content"] for one in document["write_files"]}
        if ["systemctl", "enable", "--now", "qft-watch.service"] not in document.get("runcmd", []):
            return None
        (start,) = [line for line in files[UNIT].splitlines() if line.startswith("ExecStart=")]
        _python, path, *arguments = shlex.split(start.removeprefix("ExecStart="))
        machine = self.machines[vm.id]
        script = machine.directory / "qft-watch.py"
        script.write_text(files[path])
        home = f"/home/{vm.properties['osProfile']['adminUsername']}"
        here = [str(machine.directory / "disk") if one == home else one for one in arguments]
        return [sys.executable, "-I", str(script), *here]

    def _identity(self, request: Request, vm_id: str) -> Reply:
        """A token of the machine's own identity, if it has one."""
        if self.cloud is None:
            return Reply(status=404)
        with self.cloud.world.lock:
            return self.cloud.login.identity(request, roles.principal_of(self.cloud.world, vm_id))


class MetadataWithIdentity:
    """The metadata service as the machine sees it: tokens from the cloud, the rest from within."""

    def __init__(self, *, identity: Callable[[Request], Reply], port_of: Callable[[], int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                if url.path == "/metadata/identity/oauth2/token":
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    query = dict(urllib.parse.parse_qsl(url.query))
                    request = Request(method="GET", path=url.path, query=query, headers=headers)
                    reply = identity(request)
                    self._send(reply.status, json.dumps(reply.body).encode())
                    return
                self._send(*inside(self.path, dict(self.headers.items()), port_of()))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is written beside the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def inside(path: str, headers: dict[str, str], port: int) -> tuple[int, bytes]:
    """What the machine's own service answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  (loopback)
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
