"""Strictness for every test: no silent promotion of dtype or rank."""

import os
import random
from pathlib import Path

# Every process of the tests reads what another has compiled.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Several workers share the cores, and threads of LAPACK that wait for each other wait very long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

os.environ.setdefault("SOAK_SEED", str(random.SystemRandom().randrange(2**32)))  # for all workers


def pytest_addoption(parser):
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="N",
        help="run one in N cases of all tests, and all cases of those marked every_version",
    )


def pytest_collection_modifyitems(config, items):
    kept, left_out = [], []
    for number, item in enumerate(items):
        sampled = number % config.option.sample == 0
        (kept if sampled or item.get_closest_marker("every_version") else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == "soak":
        terminalreporter.write_line(f"SOAK_SEED={os.environ['SOAK_SEED']}")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Each compiled program maps memory, and the number of maps per process is limited."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compile_quickly():
    """Without the passes of LLVM that make a program fast: for values that are compared up to
    rounding, of many programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def as_on_the_command_line():
    """JAX's own settings, under which a person runs an experiment."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield
