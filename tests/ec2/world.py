"""Changes machines and disks as EC2, a user or a service of AWS does, and keeps the bill of it."""

from __future__ import annotations

from ec2.ledger import ADDRESS_USD_PER_H, DISK_USD_PER_GB_H
from ec2.regions import SIZES
from ec2.resources import Instance, SpotRequest, Volume
from ec2.state import State


class World(State):
    """The simulated account, with what can happen to a machine in it."""

    def set_state(self, instance: Instance, state: str) -> None:
        """Change the state of a machine, and let whoever follows it know."""
        instance.state = state
        for listener in list(self.state_listeners):
            listener(instance)

    def launch(self, instance: Instance) -> None:
        """Let a machine begin to run: `pending` now, `running` soon."""
        instance.launch_s = self.now()
        instance.launches += 1
        instance.notice = None
        instance.rebalance_s = None
        instance.reason_code = instance.reason_message = instance.transition = ""
        if self.interfaces[instance.interface_id].has_public_ip:
            instance.public_ip = self.new_host()
        launches = instance.launches
        self.set_state(instance, "pending")

        def run() -> None:
            if instance.state != "pending" or instance.launches != launches:
                return
            if self.pending_death is not None:
                code, message = self.pending_death
                self.terminate_instance(instance.id, reason_code=code, message=message)
                return
            self.ledger.start_compute(instance.id, self.price_of(instance))
            if instance.public_ip:
                self.ledger.start("address", instance.id, ADDRESS_USD_PER_H)
            self.set_state(instance, "running")
            outbound = self.has_route(instance.subnet_id)
            self.hypervisor.boot(instance, instance.public_ip, outbound=outbound)

        self.after(self.timing.pending_s, run)

    def stop_instance(
        self, id_: str, reason_code: str, request_status: str, *, message: str = ""
    ) -> None:
        """Stop a machine that runs, for a reason.

        `reason_code` is what its `StateReason` says, such as `Client.InstanceInitiatedShutdown`;
        `request_status` what its spot request will say once it has stopped, such as
        `instance-stopped-by-user` or `instance-stopped-no-capacity`.
        """
        instance = self.instances[id_]
        if instance.state not in {"running", "pending"}:
            return
        self._ends(instance, reason_code, message, request_status)
        request = self.request_of(instance)
        if request is not None and request.state == "active":
            self.set_status(request, "active", "marked-for-stop")
        launches = instance.launches
        self.set_state(instance, "stopping")
        self.hypervisor.halt(instance)

        def stopped() -> None:
            if instance.state != "stopping" or instance.launches != launches:
                return
            self.set_state(instance, "stopped")
            lag_s = self.timing.marked_s if request_status.endswith("by-user") else 0.0
            self.after(lag_s, lambda: self._update_request(instance, launches, request_status))

        self.after(self.timing.stop_s, stopped)

    def shut_down_inside(self, id_: str) -> None:
        """A machine switches itself off: it stops or terminates, as it was launched to do."""
        instance = self.instances[id_]
        request = self.request_of(instance)
        behavior = instance.parameters.get("InstanceInitiatedShutdownBehavior", "stop")
        reason = "Client.InstanceInitiatedShutdown"
        if behavior == "terminate" or (request is not None and request.type == "one-time"):
            self.terminate_instance(id_, reason_code=reason)
        else:
            self.stop_instance(id_, reason, "instance-stopped-by-user")

    def terminate_instance(
        self, id_: str, *, reason_code: str, message: str = "", request_status: str = ""
    ) -> None:
        """Terminate a machine in any state, for a reason; its request may launch another one."""
        instance = self.instances[id_]
        if instance.state in {"shutting-down", "terminated"}:
            return
        wait_s = self.timing.terminate_s if instance.state == "running" else 5.0
        self._ends(instance, reason_code, message, request_status)
        request = self.request_of(instance)
        if request is not None and request.is_live:
            state = "open" if request.type == "persistent" else "closed"
            self.set_status(request, state, request_status or "instance-terminated-by-user")
        self.set_state(instance, "shutting-down")
        self.hypervisor.remove(instance)
        self.after(wait_s, lambda: self._terminated(instance))

    def set_status(self, request: SpotRequest, state: str, status: str) -> None:
        """Change state and status of a spot request."""
        request.state, request.status, request.status_s = state, status, self.now()

    def price_of(self, instance: Instance) -> float:
        """What a machine costs by the hour while it runs now."""
        if not instance.request_id:
            return SIZES[instance.size].on_demand_usd_per_h
        return self.market.price(instance.size, instance.zone)

    def add_volume(self, volume: Volume) -> None:
        """Let a disk exist, and bill."""
        self.volumes[volume.id] = volume
        self.ledger.start("disk", volume.id, volume.size_gb * DISK_USD_PER_GB_H)

    def drop_volume(self, id_: str) -> None:
        """Let a disk cease to exist."""
        self.volumes.pop(id_, None)
        self.ledger.stop("disk", id_)

    def _ends(self, instance: Instance, reason_code: str, message: str, status: str) -> None:
        """A machine ceases to run: compute and address bill no longer.

        Nobody has shown that a rehearsed interruption is free as a true one is: it bills.
        """
        rehearsed = status.endswith("-by-experiment")
        interrupted = reason_code.startswith("Server.SpotInstance") and not rehearsed
        self.ledger.stop_compute(instance.id, interrupted=interrupted)
        self.ledger.stop("address", instance.id)
        who = "User" if reason_code.startswith("Client.User") else "Server"
        instance.reason_code = reason_code
        instance.reason_message = f"{reason_code}: {message or _words(reason_code)}"
        instance.transition = f"{who} initiated ({self.moment():%Y-%m-%d %H:%M:%S} GMT)"
        instance.public_ip = ""

    def _update_request(self, instance: Instance, launches: int, status: str) -> None:
        """The request of a machine that has stopped says so."""
        request = self.request_of(instance)
        if request is None or request.state != "active":
            return
        if instance.state == "stopped" and instance.launches == launches:
            self.set_status(request, "disabled", status)
            self.set_state(instance, "stopped")

    def _terminated(self, instance: Instance) -> None:
        volume = self.volumes.get(instance.volume_id)
        if volume is not None:
            volume.instance_id = ""
            if volume.goes_with_instance:
                self.drop_volume(volume.id)
        self.set_state(instance, "terminated")
        self.after(self.timing.interface_s, lambda: self._detach(instance))
        self.after(self.timing.linger_s, lambda: self._forget(instance))

    def _forget(self, instance: Instance) -> None:
        """A terminated machine is no longer listed; its client token is not free for long."""
        del self.instances[instance.id]
        self.after(self.timing.token_s, lambda: self._free_tokens(instance.id))

    def _free_tokens(self, instance_id: str) -> None:
        self.tokens = {key: one for key, one in self.tokens.items() if one[1] != instance_id}

    def _detach(self, instance: Instance) -> None:
        """The network interface of a terminated machine is gone."""
        del self.interfaces[instance.interface_id]


def _words(reason_code: str) -> str:
    """What EC2 says with the code of a reason."""
    return {
        "Client.UserInitiatedShutdown": "User initiated shutdown",
        "Client.InstanceInitiatedShutdown": "Instance initiated shutdown",
        "Server.SpotInstanceShutdown": "Spot Instance shutdown",
        "Server.SpotInstanceTermination": "Spot Instance termination",
    }.get(reason_code, "Internal error on launch")
