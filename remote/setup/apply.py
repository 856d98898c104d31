"""Makes a machine able to train: gathers facts, plans steps, runs them, until none is needed.

Repeating it after any failure is safe: a step that is still running from before is waited for
rather than started twice, a cut connection is opened again, and nothing is done on a machine that
is ready.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from remote.errors import AuthRefused, CommandFailed, CommandResult, TimedOut, Unfit, Unreachable
from remote.job import Job, JobState, JobStatus
from remote.setup.answers_env import answers_steps
from remote.setup.driver import driver_steps
from remote.setup.facts import Facts, gather_facts
from remote.setup.failures import KILLED, KILLED_FOR_MEMORY, explain_failure, is_retryable
from remote.setup.progress import progress_line
from remote.setup.python_env import cuda_for, environment_steps, gpu_steps, interpreter
from remote.setup.steps import (
    REBOOT_S_MAX,
    DriverKind,
    SetupGoal,
    Step,
    first_boot_steps,
    repair_steps,
    require_root,
    stop_upgrades_steps,
)
from remote.ssh import Host, SshConnection, connect

DIRECTORY = "qft/setup"
POLL_S = 2.0
POLL_S_FIRST = 0.1
"""How soon a step's status is read first: most end in a moment, and only some take minutes."""
RECONNECT_S_MAX = 300.0
ROUNDS_MAX = 6
LOG_BYTES = 3000
PROGRESS_S = 10.0
"""How often progress is reported; a step that is over sooner is not worth a line."""
PROGRESS_BYTES = 64 << 10
"""How much of the end of a log is read for progress."""
AS_ROOT = 'if [ "$(id -u)" = 0 ]; then exec sh -c "$1"; else exec sudo -n sh -c "$1"; fi'


@dataclass(frozen=True, kw_only=True)
class ReadyMachine:
    """A machine that is able to train."""

    connection: SshConnection
    """The connection to use from now on; a new one if there was a reboot."""
    facts: Facts
    python: str
    """The interpreter for the trainer, relative to the home (or as the caller named it)."""
    done: tuple[Step, ...]
    """The steps that were needed."""


def apply(  # noqa: PLR0913  (clock, sleep and connecting are arguments here, by house rule)
    connection: SshConnection,
    goal: SetupGoal,
    *,
    on_message: Callable[[str], None],
    reconnect: Callable[[Host], SshConnection] = connect,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ReadyMachine:
    """Set the machine up as `goal` says; `on_message` gets each step before it begins.

    Idempotent. Raises `Unfit` if no step can help or a step changed nothing, `CommandFailed` with
    the end of the log if a step fails, `TimedOut` if one takes too long, `Unreachable` if the
    machine does not come back.
    """
    run = _SetupRun(
        connection=connection,
        goal=goal,
        on_message=on_message,
        reconnect=reconnect,
        sleep=sleep,
        clock=clock,
    )
    before: list[Step] = []
    for _ in range(ROUNDS_MAX):
        facts = gather_facts(run.connection)
        steps = plan_steps(facts, goal)
        if not steps:
            return ReadyMachine(
                connection=run.connection,
                facts=facts,
                python=interpreter(facts, goal),
                done=tuple(run.done),
            )
        if steps == before:
            break
        before = steps
        for step in steps:
            run.run_step(step)
            if step.reboot_after:
                run.reboot(facts)
                break
    raise run.unfit(before, facts)


def plan_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Return the steps that are still needed, in order; empty if the machine is ready. No I/O.

    A plan ends where a reboot or new facts are needed; `apply` plans again until it is empty.
    Raises `Unfit` with every reason at once if no command of ours can make the machine ready.
    """
    steps = first_boot_steps(facts, goal)
    if steps:
        return steps
    if goal.driver is not DriverKind.NONE:
        drivers = driver_steps(facts, goal)
        if drivers:
            return require_root(facts, before_packages(facts, goal) + drivers)
    steps += environment_steps(facts, goal, cuda_for(facts, goal))
    steps += answers_steps(facts, goal)
    if goal.driver is not DriverKind.NONE:
        steps += gpu_steps(facts, goal)
    if any(step.sudo for step in steps):
        steps = before_packages(facts, goal) + steps
    return require_root(facts, steps)


def before_packages(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Return the steps before packages are installed: stop upgrades, finish interrupted ones."""
    return stop_upgrades_steps(facts, goal) + repair_steps(facts)


@dataclass(kw_only=True)
class _SetupRun:
    """The state of one call of `apply`: the connection may be replaced on the way."""

    connection: SshConnection
    goal: SetupGoal
    on_message: Callable[[str], None]
    reconnect: Callable[[Host], SshConnection]
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    done: list[Step] = field(default_factory=list)

    def run_step(self, step: Step) -> None:
        """Run one step as a detached job, so that it survives a cut connection, and wait for it."""
        self.on_message(f"{step.name} ({step.why})")
        argv = ["sh", "-c", step.command]
        if step.sudo:
            argv = ["sh", "-c", AS_ROOT, "as-root", step.command]
        for path, text in step.files.items():
            self.write_file(path, text)
        ends_at = self.clock() + step.timeout_s
        status = self.wait_for_end(self.start(argv, ends_at), ends_at, step.name)
        if status.state is not JobState.EXITED or status.exit_code != 0:
            raise self.failure(step, status)
        self.done.append(step)

    def write_file(self, path: str, text: str) -> None:
        """Write a text file below the home, whole or not at all; connect again if needed."""
        place, temporary = shlex.quote(path), shlex.quote(f"{path}.tmp")
        command = f"umask 077; mkdir -p {shlex.quote(str(PurePosixPath(path).parent))}"
        command += f" && cat > {temporary} && sync {temporary} && mv -f {temporary} {place}"
        try:
            self.connection.run(command, input=text)
        except Unreachable:
            self.wait_for_ssh(RECONNECT_S_MAX)
            self.connection.run(command, input=text)

    def start(self, argv: list[str], ends_at: float) -> JobStatus:
        """Start a step, after one that an earlier call left running."""
        while True:
            before = self.job_status(lambda job: job.status()).attempt
            status = self.start_once(argv, before)
            if status.started or status.argv == tuple(argv):
                return status
            self.wait_for_end(status, ends_at)

    def start_once(self, argv: list[str], before: int) -> JobStatus:
        """Start a step as the next attempt after `before`.

        A cut connection may lose the answer: what was started, or is over, is not started again.
        """
        try:
            return self.job().start(argv, env={}, cwd=".")
        except Unreachable:
            self.wait_for_ssh(RECONNECT_S_MAX)
        seen = self.job().status()
        if seen.attempt > before and seen.argv == tuple(argv):
            return seen
        return self.job().start(argv, env={}, cwd=".")

    def wait_for_end(
        self, status: JobStatus, ends_at: float, name: str = "a step of before"
    ) -> JobStatus:
        """Wait until the running step ends and report its progress; stop it when time is up."""
        wait_s = POLL_S_FIRST
        began, next_s = self.clock(), PROGRESS_S
        while status.state is JobState.RUNNING:
            if self.clock() > ends_at:
                self.job_status(lambda job: job.stop(grace_s=10))
                raise TimedOut(
                    f"`{name}` on {self.connection.host} took too long",
                    hint=f"its log is {DIRECTORY}/job.log there; repeat the command to try again",
                )
            self.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_S)
            status = self.job_status(lambda job: job.status())
            elapsed_s = self.clock() - began
            if status.state is JobState.RUNNING and elapsed_s >= next_s:
                self.on_message(progress_line(name, self.read_log_end(), elapsed_s))
                next_s = elapsed_s + PROGRESS_S
        return status

    def read_log_end(self) -> str:
        """Return the end of the step's log; empty if it cannot be read just now."""
        try:
            data = self.job().tail(-PROGRESS_BYTES).data
        except Unreachable:
            return ""  # the next request for the status connects again
        return data.decode("utf-8", "replace")

    def job_status(self, request: Callable[[Job], JobStatus]) -> JobStatus:
        """Request the step's status; connect again if needed."""
        try:
            return request(self.job())
        except Unreachable:
            self.wait_for_ssh(RECONNECT_S_MAX)
            return request(self.job())

    def job(self) -> Job:
        """Return the job that runs the steps, over the present connection."""
        return Job(
            connection=self.connection, directory=DIRECTORY, python=self.goal.python or "python3"
        )

    def failure(self, step: Step, status: JobStatus) -> CommandFailed:
        """Return the error for a failed step, with the end of its log and the explanation."""
        log = self.job().tail(-LOG_BYTES).data.decode("utf-8", "replace")
        code = -1 if status.exit_code is None else status.exit_code
        result = CommandResult(exit_code=code, stdout="", stderr=log)
        kernel_log = self.read_kernel_log()
        hint = explain_failure(log, kernel_log, code) or "repeat the command to try again"
        out_of_memory = code == KILLED and KILLED_FOR_MEMORY.search(kernel_log) is not None
        final = out_of_memory or not is_retryable(log, code)
        return CommandFailed(step.name, result, hint=hint, final=final)

    def unfit(self, steps: list[Step], facts: Facts) -> Unfit:
        """Return the error for steps that did not help, with what driver and kernel report."""
        reasons = [f"after `{step.name}` it is still needed ({step.why})" for step in steps]
        if facts.smi_message:
            reasons.append(f"`nvidia-smi` says: {facts.smi_message}")
        hint = explain_failure(facts.smi_message, self.read_kernel_log())
        log_hint = f"look at {DIRECTORY}/job.log on the machine: `qft ssh`"
        return Unfit(reasons, hint=hint or log_hint)

    def read_kernel_log(self) -> str:
        """Return the lines of the kernel's log about the GPU and about lack of memory."""
        grep = "(dmesg || sudo -n dmesg) | grep -iE 'xid|out of memory|oom-kill|oom_reaper'"
        return self.connection.run(["sh", "-c", grep], check=False).stdout

    def reboot(self, facts: Facts) -> None:
        """Reboot the machine and connect to it again after its next boot."""
        self.on_message("reboot")
        argv = ["sh", "-c", AS_ROOT, "as-root", "sleep 1; systemctl reboot"]
        self.connection.run(f"nohup {shlex.join(argv)} > /dev/null 2>&1 < /dev/null &")
        self.connection.close()
        self.wait_for_ssh(REBOOT_S_MAX, not_in=facts.boot_id)

    def wait_for_ssh(self, budget_s: float, *, not_in: str = "") -> None:
        """Connect again within `budget_s`; with `not_in` only to another boot than that one."""
        ends_at = self.clock() + budget_s
        while True:
            self.sleep(POLL_S)
            try:
                self.connection = self.reconnect(self.connection.host)
                if not not_in or gather_facts(self.connection).boot_id != not_in:
                    return
                self.connection.close()
            except (Unreachable, AuthRefused, CommandFailed) as error:
                # While a machine goes down or comes up, it also refuses logins and kills commands.
                cause: Exception | None = error
            else:
                cause = None
            if self.clock() > ends_at:
                raise Unreachable(
                    f"{self.connection.host} did not come back within {budget_s:g} s",
                    hint="look at its boot log in the cloud's console",
                ) from cause
