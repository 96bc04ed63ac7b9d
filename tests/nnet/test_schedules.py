"""Schedules at their corners."""

import pytest

from speechbrain_ssl.nnet.schedules import at, cosine, linear


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
