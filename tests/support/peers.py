"""Other frameworks that tests compare with, which need not be installed."""

import importlib
import importlib.util
import os

import pytest


def import_peer(name):
    """The module `name`; see `require_peer`."""
    require_peer(name)
    return importlib.import_module(name)


def require_peer(name):
    """Skip the test if the package of module `name` is not installed; fail where peers are
    required."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        skip_without_peer(f"{package} is not installed")


def skip_without_peer(reason):
    """Skip the test, or fail it if JAXRNN_REQUIRE_PEERS is 1, as in the gate's last command."""
    if os.environ.get("JAXRNN_REQUIRE_PEERS") == "1":
        pytest.fail(f"peers are required, but {reason}", pytrace=False)
    pytest.skip(reason)
