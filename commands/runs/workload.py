"""What happens on the machine: set-up, sync, the trainer's job, and its results brought home.

Implements `infra.run.workload.Workload` with the rooms `remote` and `trainer`; every remote error
is translated here into the three that the supervisor acts on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from commands.runs.checkpoint_sync import CheckpointSync
from commands.runs.group_arguments import group_arguments
from commands.runs.home import LIVE
from commands.runs.live_files import METRICS, LiveFiles
from commands.runs.payload import PayloadItem
from commands.runs.peer_copies import Copy
from commands.runs.power_watch import MachineDown
from commands.runs.result_files import STAYS, Expected, left_there
from commands.runs.upload_rate import record_upload
from commands.runs.workload_config import WorkloadConfig
from infra.durable import write_bytes
from infra.provider import Vm
from infra.run.heartbeat import BYTES_MAX, SILENCE, Heartbeat, is_of_before, read_heartbeat
from infra.run.order import Group
from infra.run.workload import (
    HostNotTrusted,
    HostUnfit,
    HostUnreachable,
    JobOutcome,
    JobPhase,
    JobView,
)
from infra.untrusted import text
from remote import errors, job, ssh
from remote.clean_environment import clean
from remote.host_key import make_host_key, use_host_key
from remote.setup.failures import explain_failure
from remote.sync.api import pull, push
from remote.sync.plan import Progress, SyncOptions
from remote.sync.transfer import require_sftp
from trainer.adapters.settings import read_settings
from trainer.errors import ConfigError
from trainer.eviction import EVICTION_NOTICE
from trainer.exit_codes import ExitCode
from trainer.group.rank_exit import PEER_DONE, PEER_LOST
from trainer.rundir.samples import SAMPLES, SAMPLES_BYTES_MAX

CONNECT_TIMEOUT_S = 20.0
STOP_GRACE_S = 60.0
LOG_BYTES_MAX = 4 << 20
LOG_TAIL_BYTES = 2000
FAILURES_BORNE = 2
NEVER_AGAIN = (126, 127)
"""Exit codes of what may not run or is not there, as shells tell them: it ends so every time."""
MAY_END_OTHERWISE = (
    None,
    ExitCode.BUSY,
    ExitCode.FAILED_IO,
    ExitCode.INTERRUPTED,
    *ssh.KILLED,
)
"""Exit codes of a trainer that was stopped or killed, or lacked disk, network or hub."""
UP = "../../../"
"""From the job's working directory to the user's home."""
OURS = f"{UP}qft/venv-"
"""How the interpreters begin of environments that we made."""


class SshWorkload:
    """Drives the trainer on one machine over SSH."""

    def __init__(self, config: WorkloadConfig) -> None:
        self._config = config
        self._connection: ssh.SshConnection | None = None
        self._python = ""
        self._failures = 0
        self._garbled = 0
        """Answers in a row that could not be read."""
        self._sent_bytes = 0
        """Of the files that were pushed last."""
        self._helper = config.helper_python
        self._checkpoint_sync = CheckpointSync(
            connect=self._connect,
            remote_run=config.layout.run_dir,
            home=config.home,
            options=SyncOptions(python=config.helper_python),
            expected=self._expected,
            on_message=config.on_message,
            pull_lock=config.pull_lock,
        )
        self._live_files = LiveFiles(
            connection=lambda: self._connection,
            remote_run=config.layout.run_dir,
            home=config.home.parent / LIVE,
            limits={
                METRICS: lambda: self._expected().log_bytes_max,
                SAMPLES: lambda: SAMPLES_BYTES_MAX,
            },
        )

    def _expected(self) -> Expected:
        return self._config.expected()

    def connect(self, vm: Vm) -> None:
        """Connect, or find the connection alive."""
        with self._translated():
            self._open(vm)

    def make_host_key(self, vm: Vm) -> str:
        """Make a new host key there, unless a change that was cut has left one."""
        with self._translated():
            return make_host_key(self._open(vm), expected=vm.next_host_public_key)

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """Put that key into use, and go on over a connection that has it pinned."""
        self._stop_bringing_home()
        with self._translated():
            before = self._open(vm)
            self._connection = use_host_key(before, public_key)
            before.close()

    def prepare(self, vm: Vm) -> float | None:
        """Set up, then push code, model, data, config, and what is ahead at home.

        A trainer that runs is left in peace: nothing is changed under its feet. Returns how many
        seconds the pushing took, None if nothing was pushed.
        """
        config = self._config
        with self._watched(vm), self._tried_again():
            connection = self._open(vm)
            config.on_message("setting up the machine")
            connection = self._make_ready(connection, vm)
            if self._job(vm).status().state is job.JobState.RUNNING:
                if not config.changed:
                    return None
                config.on_message("the config changed: the trainer saves, and starts anew with it")
                self.stop(vm)
            began_s, self._sent_bytes = config.clock(), 0
            with self._large_files_from_peer(vm, connection):
                for item in config.payload.items(config.layout.base):
                    self._push(connection, item)
            if self._sent_bytes:
                passed_s, sent_bytes = config.clock() - began_s, self._sent_bytes
                record_upload(config.cache, vm.provider, sent_bytes=sent_bytes, seconds=passed_s)
            self._checkpoint_sync.push_newest(connection)
            return config.clock() - began_s

    @contextlib.contextmanager
    def _large_files_from_peer(self, vm: Vm, connection: ssh.SshConnection) -> Iterator[None]:
        """Copy what is large from another machine of the run first; what follows verifies it."""
        config, folders = self._config, self._config.payload.large_folders
        if config.copies is None or not folders or not vm.private_host:
            yield
            return
        with config.copies.turn(vm, config.on_message) as peer:
            if peer is not None:
                copy = Copy(peer=peer, vm=vm, base=config.layout.base, folders=folders)
                config.copies.copy(copy, self._connect, connection, config.on_message)
            yield

    def _push(self, connection: ssh.SshConnection, item: PayloadItem) -> None:
        options = SyncOptions(
            python=self._helper,
            exclude=("__pycache__", *item.exclude),
            delete=item.exact,
            cache_dir=self._config.cache,
        )
        on_progress = self._shower(item.label)
        source, target = item.source, item.target
        report = push(connection, source, target, on_progress=on_progress, options=options)
        self._sent_bytes += report.bytes_sent

    def _shower(self, what: str) -> Callable[[Progress], None]:
        return lambda seen: self._config.progress(what, seen.bytes_done, seen.bytes_total)

    def set_time_limit(self, vm: Vm, left_s: float) -> None:
        """Write the end of the budget, by the machine's own clock, where its watchdog looks."""
        put = "echo $(($(date +%s) + $1)) > qft/limit.new && mv qft/limit.new qft/limit"
        put = f"umask 077; mkdir -p qft && {put}"
        argv = ["sh", "-c", put, "limit", f"{left_s:.0f}"]
        with self._translated():
            self._open(vm).run(argv, timeout_s=30)

    def launch(self, vm: Vm, group: Group | None = None) -> None:
        """Start the trainer, once, detached; one of several machines joins `group`."""
        config = self._config
        argv = [self._interpreter(vm), "-m", "trainer", "train", "--run-dir", "../run"]
        if vm.metadata_url:
            argv += ["--metadata-url", vm.metadata_url, "--metadata-api", vm.metadata_api]
        band = config.eviction_band()
        if band:
            argv += ["--eviction-band", band]
        if vm.price_usd_per_h:
            argv += ["--price-usd-per-h", str(vm.price_usd_per_h)]
        cards = config.cards_on(vm)
        if cards > 1:
            argv += ["--cards", str(cards)]
            config.on_message(f"training with {cards} cards, a process for each")
        if cards < config.gpus:
            config.on_message(
                f"this machine has {cards} of the {config.gpus} cards of `vm.gpus`; the next one"
                " is rented with all of them"
            )
        for key in config.allow_change:
            argv += ["--allow-change", key]
        if config.nodes > 1:
            argv += ["--total-cards", str(config.nodes * config.gpus)]
        argv += group_arguments(vm, group, config.layout.run_id)
        account = config.account
        secret = account.token.reveal() if account and account.token else ""
        argv += ["--token-stdin"] * bool(secret)
        # A token is shown to the hub that it was made for, whatever the login there names.
        env = {"HF_ENDPOINT": account.endpoint} if account else {}
        with self._watched(vm):
            start = clean(argv, ours=self._python.startswith(OURS))
            self._job(vm).start(start, env=env, cwd=config.layout.code, secret=secret)
        self._bring_home_from(vm)

    def job_status(self, vm: Vm) -> JobView:
        """The job's state and the trainer's own heartbeat."""
        with self._translated():
            status = self._job(vm).status()
            heartbeat = self._heartbeat(vm)
            self._garbled = 0
        if status.state is job.JobState.EXITED and status.exit_code in NEVER_AGAIN:
            raise self._not_started(vm, status.exit_code)
        before = is_of_before(heartbeat, pid=status.pid, started_at=status.started_at)
        heartbeat = SILENCE if before else heartbeat
        if self._config.brings_home and self._config.leads():
            self._live_files.note_status(heartbeat)
        if status.state is job.JobState.RUNNING:
            self._bring_home_from(vm)
        return JobView(
            phase=_PHASES[status.state],
            outcome=_outcome(status),
            exit_code=status.exit_code,
            error=self._last_words(vm, status, heartbeat),
            eviction_announced=_is_announced(status, heartbeat),
            step=heartbeat.step or 0,
            steps=heartbeat.steps or 0,
            heartbeat=heartbeat,
        )

    def _last_words(self, vm: Vm, status: job.JobStatus, heartbeat: Heartbeat) -> str:
        """What a trainer said that failed by itself; empty if it runs, or was made to end.

        By these words it is known that it fails in the same way again.
        """
        if _outcome(status) is not JobOutcome.CRASHED or status.exit_code in MAY_END_OTHERWISE:
            return ""
        if heartbeat.error:
            return heartbeat.error
        with self._translated():
            log = self._job(vm).tail(-LOG_TAIL_BYTES).data.decode("utf-8", "replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return text(lines[-1]) or "" if lines else ""

    def _not_started(self, vm: Vm, code: int) -> HostUnfit:
        """What keeps the trainer from starting: nothing that it could do better the next time."""
        with self._translated():
            log = self._job(vm).tail(-LOG_TAIL_BYTES).data.decode("utf-8", "replace")
        last = "".join(f"\n  {line}" for line in log.splitlines()[-3:])
        return HostUnfit(
            f"the trainer cannot be started there{last}\n  hint: {explain_failure(log, '', code)}"
        )

    def stop(self, vm: Vm, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, so that the trainer saves; SIGKILL if it does not end."""
        with self._translated():
            self._job(vm).stop(grace_s)

    def save_and_pull(self, vm: Vm) -> None:
        """Let the trainer save, bring that home, and let go of the machine."""
        self._config.on_message("saving the state and bringing it home")
        self.stop(vm)
        self.bring_home(vm)

    def bring_home(self, vm: Vm) -> None:
        """Copy the newest checkpoint home now, verified."""
        with self._translated():
            self._stop_bringing_home()
            self._checkpoint_sync.pull_newest(self._open(vm), self._shower("checkpoint"))

    def fetch(self, vm: Vm) -> str:
        """Pull everything the trainer left, verified, into the run's out folder."""
        self._stop_bringing_home()
        config = self._config
        with self._watched(vm):
            connection = self._open(vm)
            expected = config.expected()
            came = pull(
                connection,
                config.layout.run_dir,
                config.out,
                limits=expected.limits,
                on_progress=self._shower("adapter"),
                options=SyncOptions(
                    python=self._helper,
                    include=expected.results,
                    exclude=STAYS,
                    cache_dir=config.cache,
                    delete=True,  # of these names only: files of another adapter are none of this
                ),
            )
            self._fetch_log(vm)
            self._garbled = 0
        for name in expected.foreign_names:
            (config.out / "adapter" / name).unlink(missing_ok=True)
        try:
            read_settings(config.out / "adapter")
        except ConfigError as error:
            reason = "the trainer says that it is done, but left no adapter that can be used"
            raise HostUnfit(f"{reason}: {error}") from error
        self._checkpoint_sync.tidy()
        if came.unmatched:
            config.on_message(
                f"{left_there(came.unmatched, came.unmatched_names)} stayed on the machine"
            )
        return str(config.out)

    def _fetch_log(self, vm: Vm) -> None:
        """The end of what the trainer said, for `qft logs` when the machine is gone."""
        running = self._job(vm)
        held = running.status().log_bytes
        tail = running.tail(max(0, held - LOG_BYTES_MAX), LOG_BYTES_MAX)
        write_bytes(self._config.out / "trainer.log", tail.data, mode=0o644)

    def clear(self, vm: Vm, grace_s: float = STOP_GRACE_S) -> None:
        """Remove the run's folder from a machine that stays the user's."""
        with self._translated():
            self._job(vm).stop(grace_s)
            self._open(vm).run(["rm", "-rf", "--", self._config.layout.base], timeout_s=120)

    def home_step(self) -> int:
        """Step of the newest verified checkpoint at home."""
        return self._checkpoint_sync.newest_step()

    def disconnect(self) -> None:
        """Drop every connection; the machine went down or is about to."""
        self._stop_bringing_home()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _bring_home_from(self, vm: Vm) -> None:
        if not self._config.brings_home:
            return
        if not self._config.leads():
            self._stop_bringing_home()
            return
        self._checkpoint_sync.start(vm)
        self._live_files.start()

    def _stop_bringing_home(self) -> None:
        self._checkpoint_sync.stop()
        self._live_files.stop()

    # ---- connections ----

    def _connect(self, vm: Vm) -> ssh.SshConnection:
        host = ssh.Host(
            address=vm.host,
            port=vm.port,
            user=vm.user,
            key_path=self._config.key_path,
            host_key=vm.host_public_key,
            next_host_key=vm.next_host_public_key,
        )
        return ssh.connect(host, timeout_s=CONNECT_TIMEOUT_S)

    def _open(self, vm: Vm) -> ssh.SshConnection:
        if self._connection is not None and not self._connection.alive:
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = self._connect(vm)
            require_sftp(self._connection)  # before minutes of set-up, not after them
        return self._connection

    def _job(self, vm: Vm) -> job.Job:
        return job.Job(
            connection=self._open(vm), directory=self._config.layout.job, python=self._helper
        )

    def _interpreter(self, vm: Vm) -> str:
        if not self._python:  # a new `qft` over a machine that an earlier one prepared
            with self._watched(vm):
                self._make_ready(self._open(vm), vm)
        return self._python

    def _make_ready(self, connection: ssh.SshConnection, vm: Vm) -> ssh.SshConnection:
        connection, python = self._config.make_ready(connection, vm)
        self._connection = connection
        relative = "/" in python and not python.startswith("/")
        # The job's working directory is the code's, set-up speaks of the user's home.
        self._python = f"{UP}{python}" if relative else python
        return connection

    def _heartbeat(self, vm: Vm) -> Heartbeat:
        """The trainer's status; silence before its first beat, and for one that is unreadable."""
        path = f"{self._config.layout.run_dir}/status.json"
        argv = ["head", "-c", str(BYTES_MAX + 1), path]
        result = self._open(vm).run(argv, timeout_s=30, check=False)
        return SILENCE if result.exit_code else read_heartbeat(result.stdout)

    @contextlib.contextmanager
    def _tried_again(self) -> Iterator[None]:
        """Take the first failures of a set-up step for bad moments of a mirror or a lock."""
        try:
            yield
        except errors.CommandFailed as error:
            self._failures += 1
            never = error.final or error.result.exit_code in NEVER_AGAIN
            if never or self._failures > FAILURES_BORNE:
                raise
            raise errors.Unreachable(f"{error}\ntrying again") from error
        else:
            self._failures = 0

    @contextlib.contextmanager
    def _watched(self, vm: Vm) -> Iterator[None]:
        """Let nothing wait for a machine that the cloud has taken away, however long it may wait.

        The connection of this moment is the one that is cut: set-up may have made another.
        """

        def cut() -> None:
            if self._connection is not None:
                self._connection.close()

        with self._translated(), self._config.power_watch.over(vm, cut):
            yield

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except errors.AuthRefused as error:
            # A booting cloud machine opens its port before cloud-init has put our key there.
            raise (HostUnreachable if self._config.rents else HostUnfit)(
                _with_hint(error)
            ) from error
        except errors.Unreachable as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise HostUnreachable(_with_hint(error)) from error
        except errors.CommandFailed as error:
            # Killed rather than failed: a machine that is taken away ends its commands first.
            killed = error.result.exit_code in ssh.KILLED and not error.final
            raise (HostUnreachable if killed else HostUnfit)(_with_hint(error)) from error
        except MachineDown as error:
            self._connection = None
            raise HostUnreachable(_with_hint(error)) from error
        except errors.Garbled as error:
            self._garbled += 1
            tries = self._garbled <= FAILURES_BORNE
            raise (HostUnreachable if tries else HostUnfit)(_with_hint(error)) from error
        except (errors.HostKeyMismatch, errors.Untrusted) as error:
            raise HostNotTrusted(_with_hint(error)) from error
        except errors.RemoteError as error:
            raise HostUnfit(_with_hint(error)) from error


_PHASES = {
    job.JobState.ABSENT: JobPhase.ABSENT,
    job.JobState.RUNNING: JobPhase.RUNNING,
    job.JobState.EXITED: JobPhase.EXITED,
    job.JobState.LOST: JobPhase.EXITED,
}
_OUTCOMES: dict[int | None, JobOutcome] = {
    ExitCode.DONE: JobOutcome.DONE,
    ExitCode.BAD_DATA: JobOutcome.BAD_INPUT,
    ExitCode.BAD_CONFIG: JobOutcome.BAD_INPUT,
    ExitCode.PREEMPTED: JobOutcome.PREEMPTED,
    PEER_LOST: JobOutcome.LEFT,
    PEER_DONE: JobOutcome.DONE_ELSEWHERE,
}
"""Every other exit code is a crash, and so is none: then the trainer was killed."""


def _outcome(status: job.JobStatus) -> JobOutcome | None:
    """How the trainer ended; None while it has not."""
    if _PHASES[status.state] is not JobPhase.EXITED:
        return None
    return _OUTCOMES.get(status.exit_code, JobOutcome.CRASHED)


def _is_announced(status: job.JobStatus, heartbeat: Heartbeat) -> bool:
    """Whether the trainer ended for a notice of the vendor, not for a signal of ours."""
    preempted = _outcome(status) is JobOutcome.PREEMPTED
    return preempted and EVICTION_NOTICE in (heartbeat.message or "")


def _with_hint(error: errors.RemoteError) -> str:
    return f"{error}\n  hint: {error.hint}" if error.hint else str(error)
