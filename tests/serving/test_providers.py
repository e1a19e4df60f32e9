"""Which execution provider is chosen; CUDA and OpenVINO themselves are in no environment of these tests."""

from __future__ import annotations

import pytest

from kerasvae.errors import ArgumentError, BundleError
from kerasvae_serving import Engine
from kerasvae_serving import engine as module
from kerasvae_serving.providers import candidates, chain

CPU, CUDA, OPENVINO = "CPUExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider"


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ([CPU], ["cpu"]),
        ([CPU, "AzureExecutionProvider", CUDA], ["cuda", "cpu"]),
        ([OPENVINO, CPU], ["openvino", "cpu"]),
    ],
)
def test_candidates_are_what_the_runtime_has(available, expected):
    assert candidates("auto", available) == expected


def test_what_is_not_there_is_refused_with_the_extra_that_brings_it():
    with pytest.raises(ArgumentError, match="'serve-gpu'"):
        candidates("cuda", [CPU])
    with pytest.raises(ArgumentError, match="be auto, cuda, openvino, cpu"):
        candidates("tpu", [CPU])


def test_the_cpu_does_what_another_cannot():
    assert [name for name, _ in chain("cuda")] == [CUDA, CPU]
    assert [name for name, _ in chain("cpu")] == [CPU]


def test_a_provider_that_the_machine_lacks_is_passed_over(bundles, monkeypatch):
    """ONNX Runtime itself falls back to the CPU where CUDA's libraries are missing, and says nothing."""
    monkeypatch.setattr(module, "candidates", lambda provider: ["cuda", "cpu"] if provider == "auto" else [provider])
    with pytest.warns(UserWarning, match=CUDA):
        engine = Engine(bundles / "blobs-1")
    assert engine.provider == "cpu"
    assert len(engine.passed_over) == 1
    assert "must run on cuda" in engine.passed_over[0]
    with pytest.warns(UserWarning, match=CUDA), pytest.raises(BundleError, match="must run on cuda"):
        Engine(bundles / "blobs-1", provider="cuda")


def test_a_provider_whose_golden_case_is_wrong_is_passed_over(bundles, monkeypatch):
    monkeypatch.setattr(module, "candidates", lambda provider: ["first", "cpu"])
    monkeypatch.setattr(module, "chain", lambda name: chain("cpu"))
    monkeypatch.setattr(module, "PROVIDERS", {"first": (CPU, {}), "cpu": (CPU, {})})
    honest = Engine._run

    def bent(engine, part, given, covariates):
        found = honest(engine, part, given, covariates)
        return {k: 1.1 * v for k, v in found.items()} if engine.provider == "first" else found

    monkeypatch.setattr(Engine, "_run", bent)
    engine = Engine(bundles / "blobs-1")
    assert engine.provider == "cpu"
    assert "golden case" in engine.passed_over[0]


def test_of_two_that_are_right_the_faster_runs(bundles, monkeypatch):
    monkeypatch.setattr(module, "candidates", lambda provider: ["first", "cpu"])
    monkeypatch.setattr(module, "chain", lambda name: chain("cpu"))
    monkeypatch.setattr(module, "PROVIDERS", {"first": (CPU, {}), "cpu": (CPU, {})})
    for slow, fast in (("first", "cpu"), ("cpu", "first")):
        monkeypatch.setattr(Engine, "_seconds", lambda engine, slow=slow: float(engine.provider == slow))
        assert Engine(bundles / "blobs-1").provider == fast
