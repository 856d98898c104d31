"""Lists the libraries that problems in the format of DS-1000 are about. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable

MODULES = (
    "numpy", "pandas", "scipy", "scipy.sparse", "scipy.stats", "scipy.optimize",
    "scipy.interpolate", "scipy.integrate", "scipy.spatial", "scipy.ndimage", "scipy.signal",
    "sklearn", "sklearn.linear_model", "sklearn.model_selection", "sklearn.preprocessing",
    "sklearn.feature_extraction.text", "sklearn.svm", "sklearn.ensemble", "sklearn.cluster",
    "matplotlib", "matplotlib.pyplot", "seaborn", "PIL.Image", "torch",
)  # fmt: skip
"""What the problems of DS-1000 import; those that are missing are left out. Not tensorflow: its
threads do not survive a fork, so each answer that wants it imports it by itself."""
DISTRIBUTIONS = (
    "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn", "torch", "tensorflow",
    "tensorflow-cpu", "xgboost", "gensim", "statsmodels",
)  # fmt: skip
"""Whose versions stand beside the result."""


def libraries_in(programs: Iterable[str]) -> list[str]:
    """Return the libraries of `MODULES` that programs name: only these are worth importing."""
    names = {one.partition(".")[0] for one in MODULES}
    word = re.compile(rf"\b(?:{'|'.join(sorted(names))})\b")
    found: set[str] = set()
    for program in programs:
        found.update(word.findall(program))
        if found == names:
            break
    return sorted(found)
