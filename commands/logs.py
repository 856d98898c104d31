"""`qft logs`: prints the trainer's log, from the machine or the fetched copy, through evictions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from commands.runs import factory
from commands.runs.config import LoadedConfig
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, is_locked, pick_run, qft_home
from commands.runs.running_machine import other_nodes, running_machine, ssh_host
from commands.runs.session import policy_of
from commands.runs.workload_config import RemoteLayout
from commands.ui.errors import CloudError, HostError, UsageError
from commands.ui.nodes import chosen_node, each_node
from commands.ui.options import Node, Run, examples
from commands.ui.output import json_log_writer, log, log_writer
from infra.provider import Vm
from infra.run.fold import fold
from infra.run.journal import read
from infra.run.state import RunState
from remote import errors, job, ssh

FOLLOW_EVERY_S = 0.5
TAIL_BYTES = 1 << 18

EXAMPLES = {
    "qft logs -f": "follow until the training ends; Ctrl-C stops only the following",
    "qft logs -f --json": "the same for a script, an object per line",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the training ends.")
    ] = False,
    node: Node = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='{"lines": [...]}; with --follow {"line": ...}, one a line.'),
    ] = False,
) -> None:
    """Print what the trainer said."""
    if as_json:
        with json_log_writer(follow=follow) as write:
            logs(run, follow=follow, write=write, on_message=log, node=node)
    else:
        logs(run, follow=follow, write=log_writer(), on_message=log, node=node)


def logs(
    wanted: str,
    *,
    follow: bool,
    write: Callable[[bytes], None],
    on_message: Callable[[str], None],
    node: int | None = None,
) -> None:
    """Write what the trainer printed; with `follow`, go on until the training ends.

    Without a machine, the log that was fetched is written. Of several machines the one that leads
    is read, unless `node` names another. While another `qft` drives the run, a machine that goes
    down or stays silent is waited for: its driver starts it again, or gives up.

    Raises:
        UsageError: there is no such run, or neither a machine nor a log.
        HostError: the machine does not answer, and nobody drives the run.
        CloudError: the provider does not say where the machine is, and nobody drives the run.
    """
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    reader = Reader(folder=folder, loaded=reopen(folder), write=write)
    waiting = False
    if others := other_nodes(folder, node):
        on_message(others)
    while True:
        # Asked before the look: once the driver is gone, that look is the last one needed.
        driven = follow and is_locked(folder)
        state = fold(read(folder.journal))
        try:
            chosen = chosen_node(state, node, name=folder.name)
            of_machine = each_node(state)[chosen]
            vm = running_machine(reader.loaded, of_machine.vm)
            if vm is not None:
                waiting = False
                reader.tail(vm, of_machine, node=chosen, follow=follow)
        except (HostError, CloudError):
            if not driven:
                raise
            vm = None
        there = vm is not None
        if not driven or (state.trained and (there or state.fetched)):
            return None if there else reader.fetched(state)
        if not (there or waiting):
            on_message("no machine answers now; waiting for whoever drives the run")
            waiting = True
        # As often as the driver looks: each time the cloud is asked and a connection made.
        time.sleep(policy_of(reader.loaded).poll_s)


@dataclass(kw_only=True)
class Reader:
    """Writes the log of a run, each part once, from whichever machine has it."""

    folder: RunFolder
    loaded: LoadedConfig
    write: Callable[[bytes], None]
    generation: int = 0
    """Of the machine that was read last: a restarted one keeps its log, another begins anew."""
    offset: int = 0
    node: int = 0
    """Which of several machines was read last."""
    left: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Generation and offset of the machines that were read before."""

    def tail(self, vm: Vm, state: RunState, *, node: int = 0, follow: bool) -> None:
        """Write what is new on the machine; with `follow`, until the job there does not run.

        Raises:
            HostError: the machine does not answer, or no longer.
        """
        self._turn_to_node(node)
        self._turn_to(state)
        try:
            with ssh.connect(ssh_host(self.folder, self.loaded, vm)) as connection:
                running = job.Job(
                    connection=connection,
                    directory=RemoteLayout(run_id=state.run_id).job,
                    python=factory.helper_python(self.loaded.config.vm),
                )
                while True:
                    alive = running.status().state is job.JobState.RUNNING
                    self._drain(running)
                    if not follow or not alive:
                        return
                    time.sleep(FOLLOW_EVERY_S)
        except errors.RemoteError as error:
            raise HostError(str(error), hint=error.hint) from error

    def fetched(self, state: RunState) -> None:
        """Write what the fetched log has beyond what was read on the machine.

        Raises:
            UsageError: there is none, and nothing was read.
        """
        if not state.nodes:
            self._turn_to(state)
        path = self.loaded.out / "trainer.log"
        if self.offset and not state.fetched:
            return  # what lies at home is of another run
        if path.exists():
            self.write(path.read_bytes()[self.offset :])
        elif not self.offset:
            raise UsageError(
                f"the machine of `{self.folder.name}` does not run, and no log was fetched yet",
                hint=f"`qft train {self.folder.name}` goes on with the run",
            )

    def _turn_to_node(self, node: int) -> None:
        """Go on where this machine's log was left."""
        if node != self.node:
            self.left[self.node] = (self.generation, self.offset)
            self.node = node
            self.generation, self.offset = self.left.get(node, (0, 0))

    def _turn_to(self, state: RunState) -> None:
        if state.generation != self.generation:
            self.generation, self.offset = state.generation, 0

    def _drain(self, running: job.Job) -> None:
        while True:
            tail = running.tail(self.offset, TAIL_BYTES)
            self.offset = tail.offset
            if not tail.data:
                return
            self.write(tail.data)
