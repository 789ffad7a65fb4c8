"""The program that `mat` runs: cell arrays of a .mat file, as an .npz file on standard output.

    python mat_conversion.py MEMORY_LIMIT NAME ... < FILE.mat

Imports neither jaxrnn nor other experiments, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.io


def main(memory_limit: int, names: Sequence[str]) -> None:
    """Convert the cell arrays `names`; exit with a message if that is impossible."""
    _limit_memory(memory_limit)
    warnings.simplefilter("error", UserWarning)  # a variable that SciPy skips as unreadable
    file = sys.stdin.buffer
    kinds = {name: kind for name, _, kind in scipy.io.whosmat(file)}
    for name in names:
        if kinds.get(name) != "cell":
            found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no variables"
            sys.exit(f"no cell array {name}; it has {found}")
    contents = scipy.io.loadmat(file, variable_names=names)
    matrices: dict[str, Any] = {}
    for name in names:
        for number, item in enumerate(contents[name].ravel(order="F"), 1):
            if not isinstance(item, np.ndarray) or item.dtype.kind not in "biuf":
                sys.exit(f"{name}, item {number}: not a full matrix of real numbers")
            matrices[f"{name} {number}"] = item
    np.savez(sys.stdout.buffer, **matrices)


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows or macOS
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
