"""Two servers behind a real Envoy are restarted in turn while clients ask, and not one request is lost."""

from __future__ import annotations

import pytest

from kerasvae_serving import Engine
from tests.serving.tools import ROOT

pytestmark = pytest.mark.heavy


@pytest.fixture
def restart(monkeypatch, bundles, prepared, tools):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from serving_restart import restart as run

    return lambda **named: run(bundles / "blobs-1", prepared, tools.bin / "envoy", **named)


def test_a_rolling_restart_loses_nothing(restart):
    """The Deployment's arguments and Envoy's file as they are; HTTP and gRPC; values beside the engine's."""
    outcome = restart()
    assert outcome.exits == [0, 0]
    assert sum(outcome.sent.values()) >= 1500
    assert min(outcome.sent.values()) >= 300
    assert outcome.lost == {"http": [], "grpc": []}


def test_without_lame_duck_and_other_attempts_requests_are_lost(restart):
    """Planted: would a loss be seen?"""
    outcome = restart(drain=0, retries=False, settle=3)
    assert outcome.exits == [0, 0]
    lost = [*outcome.lost["http"], *outcome.lost["grpc"]]
    assert lost
    assert all("upstream" in each for each in lost)


def test_other_values_are_losses(restart, monkeypatch):
    """Planted: would wrong values be seen?"""
    import serving_restart as harness

    class Wrong:
        def __init__(self, path):
            self._engine = Engine(path)
            self.manifest = self._engine.manifest

        def encode(self, images):
            return {"mean": self._engine.encode(images)["mean"] + 1}

    monkeypatch.setattr(harness, "Engine", Wrong)
    monkeypatch.setattr(harness, "REQUESTS", 50)
    outcome = restart(drain=0, settle=0)
    assert outcome.lost["http"]
    assert outcome.lost["grpc"]
    assert "other values" in outcome.lost["http"]
    assert "other values" in outcome.lost["grpc"]
