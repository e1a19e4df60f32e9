"""What a server counts, in Prometheus's form: requests, and whether the scans are still such as the model knows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from kerasvae.scoring import Reference, distance
from kerasvae_serving.repository import Repository
from kerasvae_serving.work import Work

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MEMORY = 100
"""Scans after which a code counts 1/e in the drift."""
FEWEST = 20
"""Scans before the drift is told."""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


class Metrics:
    """Counters of one server.

    Args:
        repository: Whose models are listed.
        work: Whose queue is shown.
    """

    def __init__(self, repository: Repository, work: Work) -> None:
        self._registry = CollectorRegistry()
        self._repository, self._work = repository, work
        self._children: dict[tuple[str, str, str, str], tuple[Any, Any]] = {}
        self._means: dict[tuple[str, int], tuple[float, NDArray[np.float64]]] = {}
        at = self._registry
        self.requests = Counter(
            "kerasvae_requests", "Answers by status.", ["model", "endpoint", "protocol", "status"], registry=at
        )
        self.seconds = Histogram(
            "kerasvae_request_seconds",
            "From the first byte of a request to its answer.",
            ["endpoint", "protocol"],
            buckets=SECONDS,
            registry=at,
        )
        self.percentile = Histogram(
            "kerasvae_score_percentile",
            "Of scans among the reference people: even over 0 to 100 while scans are such as theirs.",
            ["model", "score"],
            buckets=PERCENTILES,
            registry=at,
        )
        self.scans = Counter("kerasvae_scans", "Scans by verdict.", ["model", "in_distribution"], registry=at)
        self.drift = Gauge(
            "kerasvae_latent_drift",
            f"Mahalanobis distance of the mean code of about {MEMORY} scans from that of the people learned from.",
            ["model"],
            registry=at,
        )
        self.batch = Histogram(
            "kerasvae_batch_rows", "Rows of one run of a graph.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=at
        )
        self.errors = Counter("kerasvae_load_errors", "Bundles that could not be put into service.", registry=at)
        self._registry.register(_State(repository, work))

    def scan(self, model: str, version: int, codes: ArrayLike, scores: dict[str, float], known: bool | None,
             reference: Reference | None) -> None:  # fmt: skip
        """Count a scan that was answered.

        Args:
            model: Its name.
            version: Its version.
            codes: (n, d), what stands for each.
            scores: Of `Engine.score`.
            known: Whether it is in distribution; None: not judged.
            reference: The bundle's.
        """
        if known is not None:
            self.scans.labels(model, str(known).lower()).inc()
        for name in ("residual", "distance", "surprise"):
            if f"{name}_percentile" in scores:
                self.percentile.labels(model, name).observe(scores[f"{name}_percentile"])
        if reference is None:
            return
        weight, mean = self._means.get((model, version), (0.0, np.zeros(len(reference.center))))
        for code in np.asarray(codes, np.float64):
            if not np.isfinite(code).all():
                continue
            weight = weight * math.exp(-1 / MEMORY) + 1
            mean = mean + (code - mean) / weight
        self._means[model, version] = weight, mean
        if weight < FEWEST:  # of few it would tell about each
            return
        self.drift.labels(model).set(float(distance(mean[None], reference.center, reference.precision)[0]))

    def answered(self, model: str, endpoint: str, protocol: str, status: str, seconds: float) -> None:
        """Count an answer."""
        key = (model, endpoint, protocol, status)
        if key not in self._children:  # looking labels up takes longer than counting
            children = self.requests.labels(*key), self.seconds.labels(endpoint, protocol)
            self._children[key] = children
        counter, histogram = self._children[key]
        counter.inc()
        histogram.observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _State:
    """What is true now, asked for when Prometheus asks."""

    def __init__(self, repository: Repository, work: Work) -> None:
        self._repository, self._work = repository, work

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("kerasvae_requests_busy", "Requests at work or waiting.", value=self._work.busy)
        yield GaugeMetricFamily("kerasvae_requests_most", "Requests that may be.", value=self._work.most)
        memory = GaugeMetricFamily(
            "kerasvae_model_memory_bytes", "What loading a version added.", labels=["model", "version"]
        )
        ready = GaugeMetricFamily("kerasvae_model_ready", "1: in service.", labels=["model", "version", "default"])
        for name in self._repository.names:
            default = self._repository.get(name).number
            for number in self._repository.versions(name):
                memory.add_metric([name, str(number)], self._repository.get(name, number).memory)
                ready.add_metric([name, str(number), str(number == default).lower()], 1)
        yield memory
        yield ready
        failed = [entry for entry in self._repository.index() if entry.state != "READY"]
        yield GaugeMetricFamily("kerasvae_bundles_unavailable", "Bundles that failed.", value=len(failed))
