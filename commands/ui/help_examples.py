"""Examples at the foot of every command's help: lines that can be typed as they stand."""

from __future__ import annotations

from collections.abc import Mapping

EXIT_CODES = (
    "Exit codes: 0 done, 1 our bug, 2 usage or config, 3 the cloud refused, 4 host unreachable or "
    "unfit, 5 training failed, 6 budget reached, 130 interrupted, here or in the cloud."
)
FIRST_STEPS = """\b
First steps:
  qft init --data rows.csv   a run.yaml that fits your rows
  qft audit                  what would be trained
  qft plan                   offers, hours and the most it can cost
  qft run                    do it; type it again whenever it was cut off"""

EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "init": {
        "qft init": "a run.yaml to edit",
        "qft init --data rows.csv": "one that names the columns of rows.csv",
        "qft init --schema": "the schema, for editors",
    },
    "doctor": {
        "qft doctor": "this computer, and what the run.yaml here needs",
        "qft doctor --provider azure": "whether this account could rent, before any run.yaml",
    },
    "plan": {
        "qft plan": "what the run.yaml here would rent and cost",
        "qft plan other.yaml --json": "the same of another file, for a script",
    },
    "up": {"qft up": "rent and set up; `qft down` ends the billing"},
    "train": {
        "qft train": "start, go on, or follow a training; the machine stays",
        "qft train --allow-change train.steps": "go on with another number of steps",
    },
    "status": {"qft status my-run": "step, time left, cost", "qft status --json": "for scripts"},
    "logs": {
        "qft logs -f": "follow until the training ends; Ctrl-C stops only the following",
        "qft logs -f --json": "the same for a script, an object per line",
    },
    "fetch": {"qft fetch my-run": "the adapter into out/my-run/adapter beside run.yaml"},
    "down": {
        "qft down": "let the trainer save, release the machine, keep its disk",
        "qft down --delete": "bring what it saved home, remove all of this run in the cloud",
        "qft down --now": "release it at once; steps since the last checkpoint are done again",
        "qft down --all --delete": "remove everything that qft ever rented",
    },
    "run": {
        "qft run": "the run.yaml here",
        "qft run my-run --plain": "a run started before, with lines for a log file",
        "qft run --fresh": "once more from the beginning",
    },
    "ls": {
        "qft ls": "the runs of this computer",
        "qft ls --all": "every machine of ours in every cloud set up here",
        "qft ls --all --provider azure": "also when all local files are lost",
    },
    "evict": {"qft evict my-run": "see it survive; counts as one of `budget.evictions`"},
    "ssh": {
        "qft ssh": "a shell",
        "qft ssh my-run nvidia-smi -L": "one command, with its own options",
        "qft ssh uname -a": "the same on the run of the run.yaml here, or the only one",
    },
    "eval": {
        "qft eval": "the scores that the run measured",
        "qft eval --again": "measure them anew on this computer",
    },
    "verify": {"qft verify --steps 5": "replay five steps from the newest checkpoint"},
    "data": {
        "qft data sentiment reviews.csv --out data": "data/train.jsonl and data/eval.jsonl",
        "qft data jigsaw train.csv --tokenizer microsoft/phi-1_5": "by the published rule",
    },
    "audit": {
        "qft audit": "samples, lengths, labels, duplicates",
        "qft audit --html audit.html": "also as a page",
    },
    "report": {"qft report": "out/NAME/report.html and report.json"},
    "generate": {
        "qft generate --field text='It was late.'": "fill the prompt of run.yaml",
        "qft generate --prompt 'Once upon'": "a ready prompt, as it is",
        "qft generate --chat < questions.txt": "one line in, one answer out",
    },
    "export": {"qft export --rank 4": "rank 4 of a DyLoRA run, as plain LoRA"},
    "merge": {
        "qft merge": "into out/NAME/merged; a base on a hub is fetched",
        "qft merge --base phi-1_5": "a base that lies in phi-1_5",
        "qft merge --onto quantized": "the very model that QLoRA trained",
    },
    "push": {
        "qft push --repo me/my-adapter": "privately; HF_TOKEN must be set",
        "qft push --repo me/my-model --merged --public": "the merged model, for everybody",
        "qft push --repo me/my-adapter --base google/gemma-3-1b-pt": "its base lay in a directory",
    },
}


def examples(command: str) -> str:
    """The examples of a command, aligned; a backspace keeps the parser from joining the lines."""
    lines = EXAMPLES[command]
    width = max(len(line) for line in lines)
    shown = [f"  {line:<{width}}   {what}" for line, what in lines.items()]
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *shown])
