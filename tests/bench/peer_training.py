"""Trains an epoch with `transformers.Trainer` or TRL; run by their own environment's Python.

    python peer_training.py REQUEST.json

Nothing of qft is imported. The base, the adapter and the arguments are those of the published
QLoRA recipes for these tools; what the request says beyond them is one of their own settings. The
result has the seconds from the beginning of the first step to the end of the last.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Train as the request says; write adapter and times."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    began_s = time.perf_counter()
    import torch
    from transformers import set_seed

    set_seed(request["seed"])
    model = load(request)
    lines = Path(request["rows"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    times: list[float] = []
    trainer = make_trainer(request, model, rows, times)
    loaded_s = time.perf_counter()
    trainer.train()
    model.save_pretrained(request["adapter"])
    result = {
        "epoch_s": times[-1] - times[0],
        "steps": len(times) // 2,
        "load_s": loaded_s - began_s,
        "threads": torch.get_num_threads(),
    }
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def load(request: dict[str, Any]) -> Any:
    """Load the base in NF4 and put a LoRA adapter on all of its linear layers."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        request["model"], quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    base.config.use_cache = False
    if request["initial"]:
        return PeftModel.from_pretrained(base, request["initial"], is_trainable=True)
    adapter = LoraConfig(
        r=request["r"],
        lora_alpha=request["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, adapter)


def make_trainer(
    request: dict[str, Any], model: Any, rows: list[dict[str, Any]], times: list[float]
) -> Any:
    """Return the tool's trainer, which notes in `times` when each step begins and ends."""
    import transformers

    class Watch(transformers.TrainerCallback):  # type: ignore[misc] # transformers ships no types
        def on_step_begin(self, *_arguments: Any, **_named: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            times.append(time.perf_counter())

    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    arguments = {
        "output_dir": request["folder"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": request["batch_size"],
        "learning_rate": request["lr"],
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "seed": request["seed"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **request["settings"],
    }
    if request["tool"] == "trl":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=model,
            args=SFTConfig(**{"max_length": None, **arguments}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments),
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
