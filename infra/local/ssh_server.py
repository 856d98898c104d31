"""Serves SSH and SFTP of a local machine as a Linux server does, for the keys that it admits."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import termios
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import asyncssh

from infra.local.authorized_keys import FORCED, read_authorized_keys

CHUNK_BYTES = 65536
UNSENT_BYTES_MAX = 4 << 20


@dataclass(kw_only=True)
class SshServer:
    """Admits one user to one home directory; everything in it runs as a real process.

    The keys are the one given and those of `~/.ssh/authorized_keys`, read for each connection. The
    caller has made `home` the working directory, so that relative SFTP paths start there.
    """

    home: Path
    user: str
    public_key: str
    """The line that admits the machine's owner, whatever is in its home."""
    host_key: Path
    environ: dict[str, str]
    """The whole environment of what runs here."""
    children: set[int] = field(default_factory=set)
    """Processes that somebody here waits for; nobody else may reap them."""
    private_host: str = field(default="", init=False)
    """The address at which it listens beside 127.0.0.1, on the same port; empty for none."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _acceptors: list[asyncssh.SSHAcceptor] = field(default_factory=list)
    _host_key_inode: int = 0

    async def serve(self) -> int:
        """Listen on a free loopback port and return it."""
        acceptor = await self._listen("127.0.0.1", 0)
        return acceptor.get_port()

    async def serve_privately(self, private_host: str) -> None:
        """Listen on the same port of another address, too; raises `OSError` if it is taken."""
        await self._listen(private_host, self._acceptors[0].get_port())
        self.private_host = private_host

    def refresh_host_key(self) -> None:
        """Present another key to new connections if another file is in the place of the key."""
        with contextlib.suppress(FileNotFoundError):  # the machine is being deleted
            inode = self.host_key.stat().st_ino
            if self._acceptors and inode != self._host_key_inode:
                key = self._read_host_key()
                for acceptor in self._acceptors:
                    acceptor.update(server_host_keys=[key])

    def authorized_keys(self) -> asyncssh.SSHAuthorizedKeys:
        """Return the keys that are admitted now, the owner's first."""
        keys = asyncssh.import_authorized_keys(self.public_key)
        for line in read_authorized_keys(self.home):
            with contextlib.suppress(ValueError):  # one that nobody could use spoils no other
                keys.load(line)
        return keys

    def start_session(self) -> _Session:
        """Return what answers one channel of a connection."""
        return _Session(self._start, _serve_sftp, 3, allow_scp=False)

    async def _listen(self, host: str, port: int) -> asyncssh.SSHAcceptor:
        """Listen at one address."""
        acceptor = await asyncssh.create_server(
            lambda: _Authentication(server=self),
            host,
            port,
            server_host_keys=[self._read_host_key()],
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            x11_forwarding=False,
            agent_forwarding=False,
            line_editor=False,
            encoding=None,
            compression_algs=None,
            server_version="qft_local",
        )
        self._acceptors.append(acceptor)
        return acceptor

    def _read_host_key(self) -> asyncssh.SSHKey:
        self._host_key_inode = self.host_key.stat().st_ino
        return asyncssh.import_private_key(self.host_key.read_text(encoding="ascii"))

    def _start(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run what the client asked for in a task that survives the client's connection."""
        run = self._run_on_terminal if process.term_type is not None else self._run
        task = asyncio.get_running_loop().create_task(run(process))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run one command with pipes, as sshd does without a terminal.

        Like OpenSSH's server, the channel ends when the command has ended *and* nobody holds its
        output any more; and a command outlives a lost connection until it writes to it.
        """
        stdin_end, stdin = os.pipe()
        stdout, stdout_end = os.pipe()
        stderr, stderr_end = os.pipe()
        child = await asyncio.create_subprocess_exec(
            *self._argv(process),
            stdin=stdin_end,
            stdout=stdout_end,
            stderr=stderr_end,
            cwd=self.home,
            env=self._environ(process),
            start_new_session=True,
        )
        self.children.add(child.pid)
        for end in (stdin_end, stdout_end, stderr_end):
            os.close(end)
        feeding = asyncio.ensure_future(_forward_input(process, stdin, child.pid))
        try:
            await asyncio.gather(
                _forward_output(stdout, process.stdout),
                _forward_output(stderr, process.stderr),
                child.wait(),
            )
        finally:
            feeding.cancel()
            self.children.discard(child.pid)
        _report_exit(process, child.returncode)

    async def _run_on_terminal(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run a shell or command on a terminal of its own, for people."""
        master, slave = pty.openpty()
        _resize(slave, process.term_size)
        child = await asyncio.create_subprocess_exec(
            *self._argv(process),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=self.home,
            env={**self._environ(process), "TERM": process.term_type or "dumb"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        self.children.add(child.pid)
        os.close(slave)
        feeding = asyncio.ensure_future(_forward_input(process, os.dup(master), child.pid))
        try:
            await asyncio.gather(_forward_output(master, process.stdout), child.wait())
        finally:
            feeding.cancel()
            self.children.discard(child.pid)
        _report_exit(process, child.returncode)

    def _argv(self, process: asyncssh.SSHServerProcess[bytes]) -> list[str]:
        """The user's shell, given the command if there is one; the key's goes before any."""
        shell = self.environ["SHELL"]
        command = _forced_command(process.channel.get_connection()) or process.command
        return [shell, "-c", command] if command is not None else [shell, "-i"]

    def _environ(self, process: asyncssh.SSHServerProcess[bytes]) -> dict[str, str]:
        """The environment of a command; one that a key forces finds what was asked for in it."""
        forced = _forced_command(process.channel.get_connection())
        if not forced or process.command is None:
            return self.environ
        return {**self.environ, "SSH_ORIGINAL_COMMAND": process.command}


class _Session(asyncssh.SSHServerProcess[bytes]):
    """One channel: a command, a shell, or SFTP unless the key forces a command."""

    def subsystem_requested(self, subsystem: str) -> bool:
        """Allow SFTP; a key with a command of its own gets nothing else than that."""
        return subsystem == "sftp" and not _forced_command(self.channel.get_connection())


class _Authentication(asyncssh.SSHServer):
    """Lets in the one user with a key that is admitted, and lets that user forward ports."""

    def __init__(self, *, server: SshServer) -> None:
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Remember the connection that is to be authenticated."""
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        """Demand a key; only the machine's own user has one that fits."""
        if username == self._server.user and self._connection is not None:
            self._connection.set_authorized_keys(self._server.authorized_keys())
        return True

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        """Answer a new channel."""
        return self._server.start_session()

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        """Allow `ssh -L`, which is how a person looks at TensorBoard on the machine."""
        del dest_port, orig_host, orig_port
        return dest_host in {"localhost", "127.0.0.1"}


def _forced_command(connection: object) -> str:
    """The command that the key of a connection forces; empty if it forces none."""
    if not isinstance(connection, asyncssh.SSHServerConnection):
        raise TypeError("a channel without a connection of this server")
    value = connection.get_key_option(FORCED)
    return str(value[0]) if isinstance(value, list) and value else ""


class _SftpServer(asyncssh.SFTPServer):
    """SFTP on the machine's disk, where a full disk is an error and never a short file."""

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """Read, but not faster than the client takes it: its requests may run far ahead."""
        while self.channel.get_write_buffer_size() > UNSENT_BYTES_MAX:
            if self.channel.is_closing():
                raise asyncssh.SFTPConnectionLost("the client is gone")
            await asyncio.sleep(0.001)
        return os.pread(cast("IO[bytes]", file_obj).fileno(), size, offset)

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write all of `data`; a raw file may take only a part when the disk fills up."""
        handle = cast("IO[bytes]", file_obj).fileno()
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)
        return done


def _serve_sftp(channel: object) -> asyncssh.SFTPServer:
    """Return what answers SFTP on a channel."""
    return _SftpServer(cast("asyncssh.SSHServerChannel[bytes]", channel))


async def _forward_input(process: asyncssh.SSHServerProcess[bytes], handle: int, pid: int) -> None:
    """Forward the client's input and signals to the command until either side ends."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(handle, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await process.stdin.read(CHUNK_BYTES)
            except asyncssh.SignalReceived as event:
                _signal_group(pid, f"SIG{event.signal}")
                continue
            except asyncssh.BreakReceived:
                _signal_group(pid, "SIGINT")
                continue
            except asyncssh.TerminalSizeChanged as event:
                _resize(handle, event.term_size)
                continue
            if not data:
                return
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncssh.Error):
        return  # the command reads no more, or the client is gone: nothing left to carry
    finally:
        transport.close()


async def _forward_output(handle: int, client: asyncssh.SSHWriter[bytes]) -> None:
    """Forward output to the client; close it if that is gone, so that writing is an error."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK_BYTES)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(handle, "rb", buffering=0)
    )
    try:
        while data := await reader.read(CHUNK_BYTES):
            client.write(data)
            await client.drain()
    except (OSError, asyncssh.Error):
        return  # a terminal reports its end as EIO; a lost client is a broken pipe
    finally:
        transport.close()


def _report_exit(process: asyncssh.SSHServerProcess[bytes], code: int | None) -> None:
    """Tell the client how the command ended, if there is still a client."""
    with contextlib.suppress(OSError, asyncssh.Error):  # the client has left
        if code is not None and code < 0:
            name = signal.Signals(-code).name.removeprefix("SIG")
            process.exit_with_signal(name)
        else:
            process.exit(code or 0)


def _signal_group(pid: int, name: str) -> None:
    """Send a signal by name to the command and whatever shares its group."""
    number = getattr(signal, name, None)
    if isinstance(number, signal.Signals):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(pid, number)


def _resize(handle: int, size: tuple[int, int, int, int]) -> None:
    """Give a terminal the client's size (columns, rows, and both in pixels)."""
    columns, rows, _, _ = size
    if columns and rows:
        termios.tcsetwinsize(handle, (rows, columns))


def _take_terminal() -> None:
    """Make standard input the controlling terminal of this new session; runs in the child."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
