"""DS-1000 (simplified JSONL) as rows for Phi-1.5, families of problems kept together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FORMAT = "ds1000"
SOURCE = "ds1000.jsonl or ds1000.jsonl.gz of xlang-ai/DS-1000"
PUBLISHED = "none published"
TINY_MODEL = "phi"
BASE = {
    "model_type": "phi", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip


TESTS = """
import numpy as np


def generate_test_case(test_case_id):
    table = np.arange(12.0).reshape(4, 3) * test_case_id
    return table, table.sum()


def exec_test(result, ans):
    return int(np.allclose(result, ans))


exec_context = '''
def answer(a):
[insert]
    return result
result = answer(test_input)
'''


def test_execution(solution):
    code = exec_context.replace("[insert]", solution)
    for test_case_id in (1, 2):
        test_input, expected = generate_test_case(test_case_id)
        names = {"test_input": test_input}
        exec(code, names)
        assert exec_test(names["result"], expected)
"""


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format, with test programs; return the file."""
    path = directory / "ds1000.jsonl"
    libraries = ("Numpy", "Scipy", "Sklearn", "Pandas")
    rows = [
        {
            "prompt": f"Problem:\nSum the rain of {number} days in the array a.\nA:\n<code>\n"
            "import numpy as np\n</code>\nBEGIN SOLUTION\n<code>\n",
            "reference_code": "    result = a.sum()\n",
            "metadata": {
                "problem_id": number,
                "library": libraries[number % 4],
                "perturbation_origin_id": number // 2,
            },
            "code_context": TESTS,
        }
        for number in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
