"""Cell arrays of matrices from MATLAB's .mat files, read by SciPy in a process of its own.

SciPy executes nothing that a file contains, but a damaged or hostile file can make its reader crash
(https://github.com/scipy/scipy/pull/25349) or allocate without limit. The process contains both.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.shared.options import InputError

MEMORY_LIMIT = 4 << 30
"""Bytes of address space that reading a file may take, on systems that can limit it."""

_SECONDS = 300
_PROGRAM = Path(__file__).with_name("mat_conversion.py")


def read_cells(path: Path, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The matrices in the cell arrays `names`, each in MATLAB's order.

    Raises:
      InputError: `path` is not such a file, or a name is absent or not a cell array of full real
        matrices.
    """
    command = [sys.executable, "-P", str(_PROGRAM), str(MEMORY_LIMIT), *names]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # whose threads would take memory
    try:
        with path.open("rb") as file:
            done = subprocess.run(
                command,
                stdin=file,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                env=environment,
            )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} cannot be read as a .mat file within {_SECONDS} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").splitlines()
        problem = (
            said[-1] if said else f"the reader crashed, exit code {done.returncode}; it is damaged"
        )
        raise InputError(f"{path} cannot be read as a .mat file: {problem}")
    matrices = np.load(io.BytesIO(done.stdout))
    cells: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for key in matrices.files:
        cells[key.partition(" ")[0]].append(matrices[key])
    return cells
