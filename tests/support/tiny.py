"""A LLaMA-like model of 0.1 M parameters with a byte-level tokenizer, made on the spot in a second.

`make_run(directory, ...)` lays out a whole run directory around it. Used by everybody who needs a
real training that takes seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
MOODS = ("negative", "neutral", "positive")
WORDS = (
    *("the", "sky", "is", "so", "very", "blue", "today", "and", "nobody"),
    *("knows", "why", "it", "ever", "was", "grey", "before", "rain"),
)


def make_model(directory: Path, *, hidden: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """Write a random model and its tokenizer to `directory` and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer().save_pretrained(str(directory))
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=320,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(settings).save_pretrained(str(directory))
    return directory


def make_tokenizer() -> Any:
    """Return a tokenizer of single bytes with an end token; it needs no training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def make_rows(path: Path, count: int) -> Path:
    """Write `count` rows of a text of varying length and its mood as JSON lines."""
    rows = [
        {
            "text": " ".join(WORDS[(row * 7 + at) % len(WORDS)] for at in range(2 + row % 9)),
            "mood": MOODS[row % 3],
        }
        for row in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_config(model: Path, rows: Path, /, **tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config for the tiny model; `tables` overrides single fields of its tables."""
    config: dict[str, Any] = {
        "model": {"id": str(model)},
        "method": {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1},
        "data": {"train": str(rows), "prompt": "{text}\nmood: ", "completion": "{mood}"},
        "train": {
            "steps": 12,
            "batch_size": 4,
            "lr": 1e-2,
            "max_length": 128,
            "threads": 1,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": 3},
    }
    for table, fields in tables.items():
        config[table] = {**config.get(table, {}), **fields}
    return config


def make_run(directory: Path, *, rows: int = 20, **tables: Mapping[str, Any]) -> Path:
    """Lay out `model/`, `train.jsonl` and `run/config.json` in `directory`; return the run dir."""
    directory.mkdir(parents=True, exist_ok=True)
    model = directory / "model"
    if not model.exists():
        make_model(model)
    data = make_rows(directory / "train.jsonl", rows)
    return write_config(directory / "run", make_config(model, data, **tables))


def evaluation(tmp_path: Path, **fields: Any) -> tuple[Path, TrainerConfig]:
    """Return a run directory with rows of moods, and a config that scores them."""
    from trainer.config import TrainerConfig

    rows = make_rows(tmp_path / "eval.jsonl", 9)
    table = {"kind": "label", "labels": list(MOODS)} | fields
    config = make_config(tmp_path / "model", rows, data={"eval": "eval.jsonl"}, eval=table)
    return tmp_path, TrainerConfig.model_validate(config)


def write_config(run_dir: Path, config: Mapping[str, Any]) -> Path:
    """Make `run_dir` with this config and return it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return run_dir


def trainer_command(command: str, run_dir: Path, *arguments: str) -> list[str]:
    """Return the command line of the trainer in a process of its own."""
    return [sys.executable, "-m", "trainer", command, "--run-dir", str(run_dir), *arguments]


def run_trainer(
    command: str, run_dir: Path, *arguments: str, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run the trainer in a process of its own and return how it ended."""
    return subprocess.run(
        trainer_command(command, run_dir, *arguments),
        cwd=ROOT,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def quiet_environment() -> dict[str, str]:
    """Return an environment in which nothing reaches for a network and one thread computes."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Return the metrics log without its timings: what must be the same in every run."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records: Sequence[dict[str, Any]] = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def adapter_bytes(run_dir: Path) -> bytes:
    """Return the trained tensors as they lie on the disk."""
    return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()
