"""The gate runs every comparison with another framework: there a missing one is an error."""

from pathlib import Path

import pytest

from tests.support.peers import import_peer

GATE = Path(__file__).parents[2] / ".ci" / "run"


def test_a_missing_peer_skips_a_test_unless_peers_are_required(monkeypatch):
    monkeypatch.delenv("JAXRNN_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_peer is not installed"):
        import_peer("no_such_peer.module")
    monkeypatch.setenv("JAXRNN_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_peer is not installed"):
        import_peer("no_such_peer.module")
    assert import_peer("json.decoder").JSONDecoder


def test_where_the_gate_installs_peers_it_requires_them():
    lines = GATE.read_text(encoding="utf-8").splitlines()
    after = lines[lines.index(".venv/bin/pip install -q -e '.[peers]'") + 1]
    assert after.startswith("JAXRNN_REQUIRE_PEERS=1 .venv/bin/pytest tests/interop ")
