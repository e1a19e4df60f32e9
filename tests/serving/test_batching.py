"""Requests that run together: each gets its own rows, and nobody suffers from a neighbour's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from kerasvae.errors import ArgumentError
from kerasvae_serving.batching import Batches
from kerasvae_serving.signatures import Signature


def doubling(ran: list[int]) -> Signature:
    """Twice its input; it refuses batches with a negative number."""

    def run(given):
        ran.append(len(given["x"]))
        if (given["x"] < 0).any():
            raise ArgumentError("x", rule="be positive", got="less", fix="Raise it")
        return {"y": 2 * given["x"]}

    return Signature((), (), run)


def at_once(batches: Batches, signature: Signature, values: list[np.ndarray]):
    gate = Barrier(len(values))

    def ask(value):
        gate.wait()
        try:
            return batches.run(signature, {"x": value})["y"]
        except ArgumentError as error:
            return error

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(ask, values))


def test_requests_that_meet_run_together():
    ran, told = [], []
    values = [np.full((1, 2), float(n)) for n in range(4)]
    found = at_once(Batches(4, 30.0, told.append), doubling(ran), values)
    assert ran == told == [4]  # full, so nobody waited half a minute
    for value, answer in zip(values, found, strict=True):
        np.testing.assert_array_equal(answer, 2 * value)


def test_what_does_not_fit_begins_the_next_batch():
    ran: list[int] = []
    values = [np.full((2, 1), float(n)) for n in range(5)]
    found = at_once(Batches(4, 0.2), doubling(ran), values)
    assert sum(ran) == 10
    assert max(ran) <= 4
    assert len(ran) <= 4  # at least one pair met
    for value, answer in zip(values, found, strict=True):
        np.testing.assert_array_equal(answer, 2 * value)


def test_one_that_is_refused_spoils_no_other():
    values = [np.full((1, 1), float(n)) for n in (1, -1, 2)]
    found = at_once(Batches(3, 30.0), doubling([]), values)
    assert isinstance(found[1], ArgumentError)
    assert [found[0].item(), found[2].item()] == [2.0, 4.0]


def test_one_row_at_a_time_waits_for_nobody():
    ran: list[int] = []
    at_once(Batches(1, 30.0), doubling(ran), [np.ones((1, 1))] * 3)
    assert ran == [1, 1, 1]


def test_a_leader_that_fails_leaves_nobody_waiting():
    values = [np.full((1, 1), float(n)) for n in range(3)]

    def told(rows):
        raise RuntimeError("a fault of the server")

    batches, gate = Batches(3, 30.0, told), Barrier(3)

    def ask(value):
        gate.wait()
        try:
            return batches.run(doubling_alone, {"x": value})["y"].item()
        except RuntimeError:
            return None

    doubling_alone = doubling([])
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, values))
    assert found.count(None) == 1
    assert {each for each in found if each is not None} < {0.0, 2.0, 4.0}


@pytest.mark.parametrize(("most", "wait", "name"), [(0, 0.1, "--batch"), (2, -1, "--batch-wait")])
def test_settings_outside_their_range(most, wait, name):
    with pytest.raises(ArgumentError, match=name):
        Batches(most, wait)
