"""Schedules at their corners."""

import numpy as np
import pytest

from speechbrain_ssl.nnet.schedules import (
    at,
    cosine,
    exponential,
    linear,
    linspace,
    lr_factor,
    stairs,
    warmup_cosine,
)


def test_linear_reaches_its_ends_and_stays():
    values = [linear(e, 2.0, 4.0, epochs=10) for e in (0.0, 2.5, 10.0, 99.0)]
    assert values == [2.0, 2.5, 4.0, 4.0]


def test_linear_over_no_time_is_its_stop():
    assert linear(0.0, 2.0, 4.0, epochs=0) == 4.0


def test_cosine_matches_the_momentum_schedule_of_dino():
    quarters = [cosine(e, 0.996, 1.0, epochs=100) for e in (0, 25, 50, 75)]
    assert quarters == pytest.approx([0.996, 0.99659, 0.998, 0.99941], abs=1e-5)


def test_warmup_rises_from_zero_to_the_start_of_the_cosine():
    values = [cosine(e, 1.0, 0.1, 10, warmup=2) for e in (0, 1, 2, 6, 10, 11)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1, 0.1])


def test_constants_are_schedules_too():
    assert at(0.5, 3.0) == 0.5
    assert at(lambda epoch: 2 * epoch, 3.0) == 6.0


def test_linspace_has_the_values_of_numpy_one_for_each_epoch():
    values = [linspace(e, 0.05, 0.2, 10) for e in np.arange(0, 12, 0.5)]
    wanted = np.repeat(np.linspace(0.05, 0.2, 10), 2)
    assert values == pytest.approx([*wanted, 0.2, 0.2, 0.2, 0.2], rel=1e-12)


def test_exponential_passes_its_geometric_mean_half_way():
    values = [exponential(e, 1.0, 1e-4, 10) for e in (0, 5, 10, 12)]
    assert values == pytest.approx([1.0, 1e-2, 1e-4, 1e-4])


def test_exponential_decays_during_its_warmup():
    assert exponential(1, 1.0, 1e-4, 8, warmup=2) == pytest.approx(
        0.5 * 1e-4 ** (1 / 8)
    )


def test_stairs_fall_at_whole_epochs():
    values = [stairs(e, 0.95, every=5) for e in (0, 4.99, 5, 9.99, 10)]
    assert values == pytest.approx([1, 1, 0.95, 0.95, 0.95**2])


def test_the_last_step_of_the_warmup_of_dino_has_the_peak():
    steps = np.arange(8) / 4
    values = [warmup_cosine(e, 0, 10, 2, steps_per_epoch=4) for e in steps]
    assert values == pytest.approx(np.linspace(0, 1, 8))


def test_a_fixed_stop_does_not_follow_the_batch():
    for scale in (0.5, 4.0):
        last = warmup_cosine(10, 0.01, 10, 2, fixed_stop=True, scale=scale)
        assert scale * last == pytest.approx(0.01)


def test_learning_rates_follow_the_batch_by_the_rule():
    rates = [lr_factor(rule, 512, 128) for rule in ("linear", "sqrt", "none")]
    assert rates == [4.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="one of linear, sqrt, none"):
        lr_factor("cubic", 512, 128)
    with pytest.raises(ValueError, match="reference_batch"):
        lr_factor("linear", 512, None)


def test_facts_reach_the_schedules_that_ask_for_them():
    assert at(lambda epoch, scale: epoch * scale, 3.0, scale=2.0) == 6.0
    assert at(lambda epoch: epoch, 3.0, scale=2.0) == 3.0
