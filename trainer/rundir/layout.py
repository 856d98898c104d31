"""Names the files of a run directory, and tells whether they are of this config and data."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import hub, untrusted
from trainer.atomic import Disk, restore_directory
from trainer.errors import Busy, ConfigError, DataError
from trainer.hub import Shards
from trainer.rundir.fingerprint import Facts, file_sha256, flatten_config
from trainer.rundir.samples import SAMPLES

if TYPE_CHECKING:
    from trainer.config import TrainerConfig  # every table, to people who only want a name

TABLE_BYTES_MAX = 64 << 20
CONFIG = "config.json"
ADAPTER = "adapter"
ADAPTER_PARTIAL = ".adapter.partial"
SCORED = ".scored.json"  # of which config and data the scores are
HASHES = ".hashes.json"  # a cache of what the base's files hash to
STATUS = "status.json"
METRICS = "metrics.jsonl"
MEMORY = "memory.json"  # what the longest batch took, and what was done to fit it
DAY = ".day.json"  # on which the run began, if its config does not say
STAGES = ("before", "after")
SCORING = ".scoring-{stage}"  # rows that are done of a scoring that is not
# What decides about an answer of the base: how it is stored and asked.
SCORE_SETTINGS = (
    "eval.", "data.", "method.kind", "method.quant", "method.double_quant", "train.max_length",
    "train.precision",
)  # fmt: skip
RECEIPT = "qft.json"  # inside the adapter: which run it is the result of
SCORES_UNASKED = "scores_unasked"  # in the receipt: held-out rows are scored without a table, too
# What `replace_file` writes to before it renames: the name, then the process.
_REPLACED = (
    "status.json", "metrics.jsonl", "eval-before.json", "eval-after.json", SCORED, HASHES, DAY,
    MEMORY, SAMPLES,
)  # fmt: skip
_UNFINISHED = re.compile(rf"\.(?:{'|'.join(map(re.escape, _REPLACED))})\.\d+\.partial")


def finished(run_dir: Path, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether adapter and scores of this very config and data are all there."""
    return adapter_done(run_dir, config, inputs) and all(
        scored(run_dir, stage, config, inputs) for stage in STAGES
    )


def scored(run_dir: Path, stage: str, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether `eval-<stage>.json` scores this very config and data, or nothing is wanted.

    A run that an earlier version finished without a table `eval` stays finished: those scored by
    the table alone, and their adapters do not say otherwise.
    """
    if config.scored is None:
        return True
    if config.eval is None and adapter_done(run_dir, config, inputs):
        receipt = read_table(run_dir / ADAPTER / RECEIPT)
        if not receipt.get(SCORES_UNASKED):
            return True
    if not (run_dir / f"eval-{stage}.json").is_file():
        return False
    recorded = read_table(run_dir / SCORED).get(stage)
    return _same_facts(recorded, scoring_facts(stage, config, inputs))


def scoring_facts(stage: str, config: TrainerConfig, inputs: Facts) -> Facts:
    """Return the part of config and data that decides about the score of a stage."""
    flat = {k: v for k, v in flatten_config(config).items() if k.startswith(SCORE_SETTINGS)}
    learnt = training_facts(config, inputs) if stage == "after" else {}
    rows = {"data.eval": inputs["data.eval"], **_day_named(config)}
    if "eval.general" in inputs:
        rows["eval.general"] = inputs["eval.general"]
    return {**flat, **_base_named(config), **rows, **learnt}


def scoring_scratch(run_dir: Path, stage: str) -> Path:
    """Return where the rows that are done of a scoring are kept until all are."""
    return run_dir / SCORING.format(stage=stage)


def adapter_done(run_dir: Path, config: TrainerConfig, inputs: Facts) -> bool:
    """Tell whether the adapter in `run_dir` is the result of this very config and data."""
    receipt = read_table(run_dir / ADAPTER / RECEIPT)
    return _same_facts(receipt.get("training"), training_facts(config, inputs))


def read_table(path: Path) -> Facts:
    """Return a JSON table, empty if there is none or it cannot be read."""
    try:
        return untrusted.table(untrusted.parse(path.read_bytes(), bytes_max=TABLE_BYTES_MAX))
    except (OSError, untrusted.NotPlain):
        return {}


def training_facts(config: TrainerConfig, inputs: Facts) -> Facts:
    """Return the part of config and data that decides about the adapter."""
    flat = {k: v for k, v in flatten_config(config).items() if not k.startswith("eval.")}
    chosen_by = {} if config.train.validate_every is None else {"data.eval": inputs["data.eval"]}
    learnt = {
        key: value
        for key, value in inputs.items()
        if key.startswith("data.train") or key == "method.from"
    }
    return {**flat, **_base_named(config), **learnt, **chosen_by, **_day_named(config)}


def _base_named(config: TrainerConfig) -> Facts:
    """Return which base is asked for; whether it is the same one still, only a resume can tell."""
    return {"model.id": config.model.id, "model.revision": config.model.revision}


def _day_named(config: TrainerConfig) -> Facts:
    """Return the day that a chat template sees, nothing before the run has begun."""
    return {} if config.data.day is None else {"data.day": config.data.day.isoformat()}


def _same_facts(recorded: object, now: Facts) -> bool:
    """Compare facts; earlier versions recorded no day."""
    before, after = dict(untrusted.table(recorded)), dict(now)
    days = {before.pop("data.day", None), after.pop("data.day", None)} - {None}
    return before == after and len(days) < 2


def data_facts(config: TrainerConfig, run_dir: Path) -> Facts:
    """Return the SHA-256 of the data files, and of the adapter that is gone on from, if any.

    Several files to learn from are `data.train.0` and so on, with their weights beside them.

    Raises:
        DataError: one of them cannot be read.
        ConfigError: there is no such adapter.
    """
    from trainer.adapters.parent import adapter_sha256, find_parent  # with the table `method`

    named = {f"data.{key}": name for key, name in config.data.files.items()}
    if config.scored is not None and config.scored.general is not None:
        named["eval.general"] = config.scored.general
    facts: Facts = {"data.train": None, "data.eval": None}
    missing: list[str] = []
    for key, name in named.items():
        path = resolve(run_dir, name)
        try:
            facts[key] = _digest(path)
        except OSError as error:
            missing.append(f"{path}: {error.strerror} (`{key}`)")
    parent = find_parent(config.method, run_dir)
    if parent is not None:
        try:
            facts["method.from"] = adapter_sha256(parent)
        except OSError as error:
            missing.append(f"{parent}: {error.strerror} (`method.from`)")
    if missing:
        raise DataError(missing)
    if "data.train" not in named:
        del facts["data.train"]
        for at, one in enumerate(config.data.train_sets):
            facts[f"data.train.{at}.weight"] = one.weight
    return facts


def _digest(rows: Path | Shards) -> str:
    if not isinstance(rows, Shards):
        return file_sha256(rows)
    return hashlib.sha256("\n".join(map(file_sha256, rows.files)).encode()).hexdigest()


def resolve(run_dir: Path, name: str) -> Path | Shards:
    """Return the file that a name in the config means, or the shards; what is on a hub is fetched.

    Raises:
        DataError: it cannot be fetched.
    """
    remote = hub.parse(name)
    if remote is not None:
        return hub.fetch(remote)
    return (run_dir / Path(name).expanduser()).resolve()


def sweep(run_dir: Path, *, disk: Disk) -> None:
    """Remove what a killed trainer left half written; finish or undo an exchange of adapters.

    Only names of this trainer's own go: other programs may be writing beside it. Call it inside
    `alone_in`. Raises `OSError` if an adapter that was moved aside cannot be moved back.
    """
    restore_directory(run_dir / ADAPTER, disk=disk)
    done = [scratch for stage in STAGES if _is_over(scratch := scoring_scratch(run_dir, stage))]
    for entry in sorted(run_dir.iterdir()):
        name = entry.name
        if name == ADAPTER_PARTIAL or _UNFINISHED.fullmatch(name) or entry in done:
            with suppress(OSError):  # a leftover that stays does no harm
                disk.remove_tree(entry)


def _is_over(scratch: Path) -> bool:
    """Tell whether rows were kept before the last scoring ended: then they are part of a result."""
    try:
        ended = (scratch.parent / SCORED).stat().st_mtime_ns
        return all(entry.stat().st_mtime_ns < ended for entry in scratch.iterdir())
    except OSError:  # there is none of the two
        return False


@contextmanager
def alone_in(run_dir: Path) -> Iterator[int]:
    """Hold the run directory's lock, which dies with the process and those that inherit it.

    Yields its descriptor.

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
        yield descriptor
    finally:
        os.close(descriptor)
