"""Audits and tokenizes files of rows and times it, in one process with its imports behind it.

python -m bench.data_work RESULT.json CONFIG.json ROWS.jsonl ...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Write the seconds of the audit and of tokenizing, by file."""
    result, config_path, *files = map(Path, arguments)
    from trainer.job.job import prepare_environment

    prepare_environment()
    from trainer import model as models
    from trainer.config import load_config
    from trainer.data.examples import load_examples
    from trainer.pages.audit import as_text, audit

    config = load_config(config_path)
    tokenizer = models.load_tokenizer(models.find_source(config.model, config_path.parent))
    found: dict[str, dict[str, float]] = {"audit": {}, "tokenizing": {}}
    for warm in (True, False):
        for file in files[:1] if warm else files:
            data = config.data.model_copy(update={"train": str(file)})
            began_s = time.perf_counter()
            load_examples(data, file, tokenizer, max_length=config.train.max_length)
            found["tokenizing"][file.name] = time.perf_counter() - began_s
            began_s = time.perf_counter()
            changed = config.model_copy(update={"data": data})
            as_text(audit(changed, file.parent, tokenizer, seq2seq=False))
            found["audit"][file.name] = time.perf_counter() - began_s
    result.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
