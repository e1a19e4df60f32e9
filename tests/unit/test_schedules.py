"""Schedules: values worked by hand, and the callback on a model in training."""

import json

import keras
import numpy as np
import pytest
from scipy.special import expit

from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO
from kerasvae.training.callbacks import Schedules
from kerasvae.training.schedules import Constant, Cosine, Cyclical, Linear, Schedule, Sigmoid

EVERY = (
    Constant(0.3),
    Linear(0.0, 4.0, begin=0.2, end=0.6),
    Cosine(2.0, -1.0, end=0.5),
    Sigmoid(0.1, 0.7, begin=0.1, steepness=8.0),
    Cyclical(0.0, 1.0, cycles=3, ramp=0.25),
)
RAMPS = (Linear, Cosine, Sigmoid)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(2), {0: 2, 0.4: 2, 1: 2}),
        (Linear(0, 4, begin=0.2, end=0.6), {0: 0, 0.2: 0, 0.3: 1, 0.4: 2, 0.5: 3, 0.6: 4, 1: 4}),
        (Linear(3, 1), {0: 3, 0.25: 2.5, 0.5: 2, 1: 1}),
        # (1 − cos 45°) / 2 = (2 − √2) / 4
        (Cosine(0, 1), {0: 0, 0.25: (2 - 2**0.5) / 4, 0.5: 0.5, 0.75: (2 + 2**0.5) / 4, 1: 1}),
        (Cosine(1, 3, begin=0.5), {0: 1, 0.5: 1, 0.75: 2, 1: 3}),
        (Sigmoid(-1, 1), {0: -1, 0.5: 0, 1: 1}),
        (Sigmoid(0, 2, begin=0.4, end=0.6), {0.4: 0, 0.5: 1, 0.6: 2}),
        # four cycles: each a quarter, the first half of which is the rise
        (
            Cyclical(0, 2),
            {0: 0, 1 / 16: 1, 1 / 8: 2, 3 / 16: 2, 1 / 4: 0, 5 / 16: 1, 3 / 8: 2, 1 / 2: 0, 3 / 4: 0, 7 / 8: 2, 1: 2},
        ),
        (Cyclical(1, 0, cycles=1, ramp=1), {0: 1, 0.5: 0.5, 0.75: 0.25, 1: 0}),
    ],
)
def test_values_worked_by_hand(schedule, values):
    for fraction, value in values.items():
        assert schedule(fraction) == pytest.approx(value, abs=1e-12), fraction
        assert type(schedule(fraction)) is float


@pytest.mark.parametrize("steepness", [0.01, 3.0, 12.0, 300.0])
def test_sigmoid_is_the_stretched_logistic_function(steepness):
    t = np.linspace(0, 1, 41)
    raw = expit(steepness * (t - 0.5))
    expected = 2 + 3 * (raw - raw[0]) / (raw[-1] - raw[0])
    found = [Sigmoid(2, 5, steepness=steepness)(fraction) for fraction in t]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(("start", "stop"), [(0.1, 0.7), (1e3, -0.3)])
def test_ramps_go_one_way_and_arrive_exactly(ramp, start, stop):
    schedule = ramp(start, stop, begin=0.07, end=0.91)
    values = np.array([schedule(fraction) for fraction in np.linspace(0, 1, 1001)])
    assert (np.diff(values) * np.sign(stop - start) >= 0).all()
    assert (values[:71] == start).all()
    assert (values[910:] == stop).all()
    assert len(set(values)) > 500


def test_cycles_begin_anew_whatever_the_rounding():
    for cycles in range(1, 130):
        schedule = Cyclical(0.1, 0.7, cycles=cycles)
        assert [schedule(k / cycles) for k in range(cycles)] == [0.1] * cycles
        assert schedule(1) == 0.7


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.kind)
def test_config_round_trip(schedule):
    config = json.loads(json.dumps(schedule.to_config()))
    again = Schedule.from_config(config)
    assert type(again) is type(schedule)
    assert again == schedule
    assert type(schedule).from_config(config) == schedule
    assert again.to_config() == config
    with pytest.raises(AttributeError):
        again.start = 3.0


def test_numbers_of_any_kind_become_floats():
    schedule = Linear(np.float32(0), 2, end=np.float64(0.5))
    assert schedule == Linear(0.0, 2.0, 0.0, 0.5)
    assert Schedule.from_config(json.loads(json.dumps(schedule.to_config()))) == schedule
    assert Schedule.from_config({"kind": "linear", "start": 0, "stop": 2, "end": 0.5}) == schedule


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Constant(float("nan")), "value must be a finite number"),
        (lambda: Constant(True), "value must be a finite number"),
        (lambda: Linear("0", 1), "start must be a finite number"),
        (lambda: Linear(0, float("inf")), "stop must be a finite number"),
        (lambda: Linear(0, 1, begin=0.5, end=0.5), "0 ≤ begin < end ≤ 1"),
        (lambda: Cosine(0, 1, end=1.5), "0 ≤ begin < end ≤ 1"),
        (lambda: Sigmoid(0, 1, begin=-0.1), "0 ≤ begin < end ≤ 1"),
        (lambda: Sigmoid(0, 1, steepness=0), "steepness must be positive"),
        (lambda: Cyclical(0, 1, cycles=0), "cycles must be a whole number"),
        (lambda: Cyclical(0, 1, cycles=2.5), "cycles must be a whole number"),
        (lambda: Cyclical(0, 1, ramp=0), r"ramp must lie in \(0, 1\]"),
        (lambda: Linear(0, 1)(1.01), r"fraction must lie in \[0, 1\]"),
        (lambda: Linear(0, 1)(-0.01), r"fraction must lie in \[0, 1\]"),
        (lambda: Linear(0, 1)(float("nan")), "fraction must be a finite number"),
        (lambda: Schedule.from_config({"kind": "linaer", "start": 0, "stop": 1}), "Did you mean 'linear'"),
        (lambda: Cosine.from_config({"kind": "linear", "start": 0, "stop": 1}), "kind must be one of cosine"),
        (lambda: Schedule.from_config({"kind": "linear", "start": 0}), "have the numbers start, stop, begin, end"),
        (lambda: Schedule.from_config({"kind": "constant", "value": 0, "stop": 1}), "have the numbers value"),
        (lambda: Schedules(0, {}), "total_steps must be a whole number"),
        (lambda: Schedules(10, {"beta": 0.5}), r"Use Constant\(0\.5\)"),
    ],
)
def test_bad_numbers_are_one_sentence(call, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        call()


# --- in training ------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((8, 6)).astype("f4")
STEPS = 4  # an epoch of eight people, two a step


class Watch(keras.callbacks.Callback):
    """Beta of each step."""

    def __init__(self):
        super().__init__()
        self.beta = []

    def on_train_batch_begin(self, batch, logs=None):
        self.beta.append(float(self.model.scheduled["beta"]))


def small(eager=True):
    keras.utils.set_random_seed(0)
    model = VAE(dense_encoder((6,), 4, (4,)), dense_decoder((6,), 2, (4,)), objective=ELBO(beta=2.0))
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=eager)  # no tracing: faster for a few steps
    return model


def fit(model, callbacks, epochs, **options):
    watch = Watch()
    model.fit(X, batch_size=2, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch.beta


def test_each_step_has_the_value_of_its_fraction():
    model, total = small(eager=False), 3 * STEPS
    seen = fit(model, [Schedules(total, {"beta": Linear(0.0, 2.0, end=0.5)})], 3)
    # warm-up over the first half: 0, 1/3, … in six steps of twelve, then 2
    np.testing.assert_allclose(seen, [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3] + [2] * 6, rtol=1e-6)
    # what the compiled step reports at the end of each epoch is the value of the epoch's last step
    np.testing.assert_allclose(model.history.history["beta"], [1, 2, 2], rtol=1e-6)
    assert float(model.scheduled["beta"]) == 2


def test_resumed_training_follows_the_same_values(tmp_path):
    total, schedule = 3 * STEPS, Cyclical(0.0, 1.0, cycles=2, ramp=0.8)
    whole, cut = small(), small()
    expected = fit(whole, [Schedules(total, {"beta": schedule})], 3)
    assert len(set(expected)) > 4
    first = fit(cut, [Schedules(total, {"beta": schedule})], 1)
    cut.save(tmp_path / "cut.keras")
    again = keras.saving.load_model(tmp_path / "cut.keras")
    again.run_eagerly = True
    rest = fit(again, [Schedules(total, {"beta": schedule})], 3, initial_epoch=1)
    assert first + rest == expected
    np.testing.assert_array_equal(again.encode(X)["mean"], whole.encode(X)["mean"])


def test_the_last_value_is_left_when_training_ends():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    model = small()
    seen = fit(model, [Schedules(40, {"beta": Cosine(0.0, 0.75)}), Stop()], 1)
    assert max(seen) < 0.1
    assert float(model.scheduled["beta"]) == 0.75
    # more steps than planned keep it, too
    assert set(fit(model, [Schedules(1, {"beta": Cosine(0.0, 0.75)})], 1)) == {0.75}


def test_the_loss_follows_the_schedule():
    model = small()
    fit(model, [Schedules(STEPS, {"beta": Constant(0.0)})], 1)
    found = model.evaluate(X, batch_size=8, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(-found["log_likelihood"], rel=1e-5)
    assert found["kl"] > 0


def test_names_that_the_objective_does_not_schedule_are_refused():
    with pytest.raises(
        ArgumentError, match=r"'bata' must be one that the objective or posterior schedules: beta, .*mean 'beta'"
    ):
        fit(small(), [Schedules(STEPS, {"bata": Constant(1.0)})], 1)
