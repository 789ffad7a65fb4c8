"""Functions of test files, called in processes of their own: a process's devices are fixed once."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds, for a slow and busy machine


def environment(**more):
    """This process's, without the proxies, through which the processes of a run would call each
    other."""
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    fresh = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **more}
    return {
        name: value for name, value in {**kept, **fresh}.items() if name != "JAX_NUM_CPU_DEVICES"
    }


def command(function, *arguments):
    """The command that calls a function of a test file."""
    path = Path(function.__code__.co_filename).relative_to(ROOT).with_suffix("")
    call = f"t.{function.__name__}(*{arguments!r})"
    code = f"import tests.conftest, {'.'.join(path.parts)} as t; {call}"
    return [sys.executable, "-c", code]


def run_alone(function, folder, *arguments):
    """Call a function of a test file in a new process, whose working directory is `folder`."""
    done = subprocess.run(
        command(function, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def run_together(function, folder, *arguments):
    """Two processes that call ``function(rank, port, folder, *arguments)`` of a test file, each
    with a rank of its own; they are killed at the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            command(function, rank, port, str(folder), *arguments),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
