"""A training run that is killed at any moment, even while saving, goes on as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[3]
KILLS = 5  # in each of four runs
SAVES = 90
OPTIONS = (
    *("--seeds", "2", "--hidden-size", "4", "--window", "32", "--horizon", "2"),
    *("--steps", str(SAVES), "--eval-every", "1", "--patience", "1000", "--save-seconds", "0"),
)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a run of a series that is read from a file; its programs are compiled once."""
    folder = tmp_path_factory.mktemp("compiled")
    path = folder / "series.csv"
    values = np.cumsum(np.random.default_rng(0).normal(size=200))
    path.write_text("\n".join(["value", *map(str, values)]))
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

    def call(*arguments):
        if "--resume" not in arguments:
            arguments = (*arguments, "--csv", str(path), "--column", "value", *OPTIONS)
        return subprocess.Popen(
            [sys.executable, "-m", "experiments", "forecast", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return call


def run_to_the_end(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output


def checkpoints(folder):
    return folder / "checkpoints" / "network"


def list_saves(folder):
    """The names in the folder of saves, of those in the making too."""
    path = checkpoints(folder)
    return {entry.name for entry in path.iterdir()} if path.exists() else set()


def read_last_save(folder):
    with ocp.CheckpointManager(checkpoints(folder)) as manager:
        return manager.latest_step(), manager.restore(
            manager.latest_step(), args=ocp.args.StandardRestore()
        )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_the_end(start("--folder", str(folder)))
    return folder


def wait_for(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.0005)


def kill_while_it_trains(folder, process, draw):
    """SIGKILL a run a while after its next save; half of the times, while it saves again."""
    before = list_saves(folder)
    wait_for(lambda: list_saves(folder) - before, process)
    time.sleep(draw.uniform(0.0, 0.2))
    saving = draw.random() < 0.5
    if saving:
        seen = list_saves(folder)
        wait_for(lambda: list_saves(folder) - seen, process)
        time.sleep(draw.uniform(0.0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 8))]
)
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one_bit_for_bit(
    start, undisturbed, tmp_path, seed
):
    draw = random.Random(seed)
    folder = tmp_path / "run"
    option = "--folder"
    for _ in range(KILLS):
        kill_while_it_trains(folder, start(option, str(folder)), draw)
        option = "--resume"
    assert 0 < read_last_save(folder)[0] < SAVES
    run_to_the_end(start("--resume", str(folder)))

    got, expected = read_last_save(folder), read_last_save(undisturbed)
    assert got[0] == expected[0] == SAVES
    leaves, structure = jax.tree.flatten(got[1])
    assert jax.tree.structure(expected[1]) == structure
    for leaf, other in zip(leaves, jax.tree.leaves(expected[1]), strict=True):
        assert read_bits(leaf) == read_bits(other)
    assert read_metrics(folder) == read_metrics(undisturbed)


def read_bits(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def read_metrics(folder):
    """The text, since NaN differs from itself."""
    return (folder / "metrics.json").read_text()
