"""One training job from config to adapter, in stages that are skipped when their result is whole.

An eviction in any stage is one and the same case: the next start does what is still missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer import hub
from trainer.config import ConfigError, EvictionBand, TrainerConfig, load_config
from trainer.disk import RealDisk
from trainer.errors import Busy, Preempted
from trainer.eviction import Flag, MetadataPoll, on_signals
from trainer.fingerprint import Facts, file_sha256, flatten_config, permitted_keys
from trainer.rows import DataError
from trainer.status import Heartbeat, Phase

CONFIG = "config.json"
ADAPTER = "adapter"
SCORED = ".scored.json"  # of which config and data the scores are
STAGES = ("before", "after")
# What decides about an answer of the base: how it is stored and asked.
SCORE_SETTINGS = (
    "eval.", "data.", "method.kind", "method.quant", "method.double_quant", "train.max_length",
    "train.precision",
)  # fmt: skip
RECEIPT = "qft.json"  # inside the adapter: which run it is the result of


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    run_dir: Path
    metadata_url: str | None = None
    allow_change: tuple[str, ...] = ()
    band: EvictionBand | None = None
    price_usd_per_h: float = 0.0


def run_job(order: Order, say: Callable[[str], None]) -> None:
    """Do the whole job; return when the adapter is whole and scored.

    Raises:
        Preempted: a notice came; everything done so far is saved (exit 75).
        ConfigError, DoesNotFit, Diverged: the settings must change (exit 78).
        DataError: the rows must change (exit 65).
        Busy: another trainer runs in this directory (exit 73).
        OSError: the disk or the network fails (exit 74); whole checkpoints stand.
    """
    with alone_in(order.run_dir):
        heartbeat = Heartbeat(order.run_dir / "status.json", disk=RealDisk(), now=_now)
        flag = Flag(time.monotonic)
        with heartbeat, on_signals(flag), polling(order.metadata_url, flag, say):
            _reported(order, heartbeat, flag, say)


def _reported(order: Order, heartbeat: Heartbeat, flag: Flag, say: Callable[[str], None]) -> None:
    """Do the job and leave its end, whatever it is, in the status."""
    try:
        _stages(order, heartbeat, flag, say)
    except Preempted:
        reason = flag.notice.reason if flag.notice else "notice"
        heartbeat.update(phase=Phase.PREEMPTED, message=f"stopped by {reason}, state saved")
        raise
    except BaseException as error:
        heartbeat.update(phase=Phase.FAILED, error=f"{type(error).__name__}: {error}")
        raise
    heartbeat.update(phase=Phase.DONE, message=None, eta_s=0.0)


def _stages(order: Order, heartbeat: Heartbeat, flag: Flag, say: Callable[[str], None]) -> None:
    config = load_config(order.run_dir / CONFIG)
    permitted_keys(order.allow_change)  # a slip is told now, not at the first resume
    inputs = data_facts(config, order.run_dir)
    if adapter_done(order.run_dir, config, inputs):
        heartbeat.update(**read_table(order.run_dir / ADAPTER / RECEIPT).get("status", {}))
    if finished(order.run_dir, config, inputs):
        say("everything is done already: nothing to do")
        return
    prepare_environment()
    from trainer import stages  # torch and friends take seconds; what is done needs none of them

    desk = stages.Desk(
        order=order, config=config, inputs=inputs, heartbeat=heartbeat, flag=flag, say=say
    )
    stages.work(desk)


def prepare_environment() -> None:
    """Set what torch reads when it is imported; call before that.

    No compiling: bitsandbytes quantises through `torch.compile` where a C++ compiler happens to be
    installed, which is slow to load and makes the bits of the base depend on the machine. No
    spinning: threads that wait by spinning slow a step on a busy machine tenfold (measured 2.6 s
    against 36 s with two trainers on two cores); a user's own choice is respected.
    """
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def finished(run_dir: Path, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether adapter and scores of this very config and data are all there."""
    return adapter_done(run_dir, config, inputs) and all(
        scored(run_dir, stage, config, inputs) for stage in STAGES
    )


def scored(run_dir: Path, stage: str, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether `eval-<stage>.json` scores this very config and data, or nothing is wanted."""
    if config.eval is None:
        return True
    if not (run_dir / f"eval-{stage}.json").is_file():
        return False
    return bool(read_table(run_dir / SCORED).get(stage) == scoring_facts(stage, config, inputs))


def scoring_facts(stage: str, config: TrainerConfig, inputs: Facts) -> Facts:
    """Return the part of config and data that decides about the score of a stage."""
    flat = {k: v for k, v in flatten_config(config).items() if k.startswith(SCORE_SETTINGS)}
    learnt = training_facts(config, inputs) if stage == "after" else {}
    return {**flat, **_base_named(config), "data.eval": inputs["data.eval"], **learnt}


def adapter_done(run_dir: Path, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether the adapter in `run_dir` is the result of this very config and data."""
    receipt = read_table(run_dir / ADAPTER / RECEIPT)
    return bool(receipt.get("training") == training_facts(config, inputs))


def read_table(path: Path) -> Facts:
    """Return a JSON table, empty if there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def training_facts(config: TrainerConfig, inputs: Facts) -> Facts:
    """Return the part of config and data that decides about the adapter."""
    flat = {k: v for k, v in flatten_config(config).items() if not k.startswith("eval.")}
    chosen_by = {} if config.train.validate_every is None else {"data.eval": inputs["data.eval"]}
    return {**flat, **_base_named(config), "data.train": inputs["data.train"], **chosen_by}


def _base_named(config: TrainerConfig) -> Facts:
    """Return which base is asked for; whether it is the same one still, only a resume can tell."""
    return {"model.id": config.model.id, "model.revision": config.model.revision}


def data_facts(config: TrainerConfig, run_dir: Path) -> Facts:
    """Return the SHA-256 of the data files; raise `DataError` if one cannot be read."""
    facts: Facts = {"data.train": None, "data.eval": None}
    missing: list[str] = []
    for key, name in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if name is not None:
            path = resolve(run_dir, name)
            try:
                facts[key] = file_sha256(path)
            except OSError as error:
                missing.append(f"{path}: {error.strerror} (`{key}`)")
    if missing:
        raise DataError(missing)
    return facts


def resolve(run_dir: Path, name: str) -> Path:
    """Return the file that a name in the config means; one on a hub is fetched.

    Raises:
        DataError: it cannot be fetched.
    """
    remote = hub.parse(name)
    if remote is not None:
        return hub.fetch(remote)
    return (run_dir / Path(name).expanduser()).resolve()


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock, which dies with the process.

    Raises:
        Busy: it is taken.
        ConfigError: there is no such directory.
    """
    if not run_dir.is_dir():
        raise ConfigError([f"--run-dir: there is no directory {run_dir}"])
    descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another trainer works in {run_dir} (its pid is in status.json); "
                "follow that one, or stop it first"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def polling(url: str | None, flag: Flag, say: Callable[[str], None]) -> Iterator[None]:
    """Ask the metadata service for notices while inside; without a URL, ask nobody."""
    if url is None:
        yield
        return
    poll = MetadataPoll(url=url, flag=flag, now=_now, say=say)
    poll.start()
    try:
        yield
    finally:
        poll.close()


def _now() -> datetime:
    return datetime.now(tz=UTC)
