"""Declared types and ranges: what is accepted, and what the message says."""

import functools
import inspect

import numpy as np
import pytest

from speechbrain_ssl.checks import (
    ArgumentError,
    check,
    checked,
    each,
    interval,
    number,
    one_of,
    optional,
    schedule,
    whole,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (number(), [0, -1.5, np.float32(2), INF], ["1", None, True, NAN, [1]]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 1.1, NAN]),
        (number(above=0), [1e-9, INF], [0, -1]),
        (number(above=0, high=1), [1], [0, 1.1]),
        (number(0, below=1), [0], [1]),
        (whole(1), [1, np.int64(7)], [0, 1.0, "1", True]),
        (whole(0, 3), [3], [4]),
        (each(number(0)), [[], [0, 1], (2,)], ["01", 0, [0, -1], [0, "1"]]),
        (each(whole(), 2), [[1, 2]], [[1], [1, 2, 3]]),
        (interval(number()), [[0, 15], [3, 3]], [[15, 0], [1], 5, [0, "a"]]),
        (one_of("a", True, None), ["a", True, None], ["b", 1, False]),
        (optional(number(0)), [None, 1], [-1, "x"]),
        (schedule(number(0, 1)), [0.5, lambda t: 1.0], [2, lambda t: 2, "x"]),
    ],
)
def test_rule_accepts_these_values_only(rule, good, bad):
    for value in good:
        check("x", value, rule)
    for value in bad:
        with pytest.raises(ArgumentError, match="^x must be "):
            check("x", value, rule)


@pytest.mark.parametrize(
    "rule, value, said",
    [
        (number(0, 1), 2, "x must be a number from 0 to 1, not 2"),
        (number(above=0), "a", "x must be a number above 0, not 'a'"),
        (
            number(above=0, high=1),
            None,
            "x must be a number above 0 and of at most 1, not null",
        ),
        (whole(1), 2.5, "x must be a whole number of at least 1, not 2.5"),
        (one_of("a", None), 1, "x must be a or null, not 1"),
    ],
)
def test_message_says_what_is_expected_and_what_was_found(rule, value, said):
    with pytest.raises(ArgumentError) as refusal:
        check("x", value, rule)
    assert str(refusal.value) == said
    assert refusal.value.argument == "x"


class Loss:
    @checked(temperature=number(above=0), size=whole(1))
    def __init__(self, dim, temperature=0.1, size=-1):
        self.made = dim, temperature, size


def test_arguments_are_checked_by_position_and_by_name_but_not_defaults():
    assert Loss(3).made == (3, 0.1, -1)
    with pytest.raises(ArgumentError, match="temperature .* not 0"):
        Loss(3, 0)
    with pytest.raises(ArgumentError, match="size"):
        Loss(3, size=0)


@checked(epochs=number(above=0))
def ramp(epoch, epochs, stop=1.0):
    return stop * min(epoch / epochs, 1.0)


def test_schedules_are_checked_at_the_first_epoch_and_at_their_ends():
    rule = schedule(number(0, 1))
    check("momentum", functools.partial(ramp, epochs=3), rule)
    late = functools.partial(ramp, epochs=3, stop=2)
    said = "momentum must be .*, not ramp with epochs: 3, stop: 2"
    with pytest.raises(ArgumentError, match=said):
        check("momentum", late, rule)
    with pytest.raises(ValueError, match="momentum: epochs must be .* not 0"):
        check("momentum", functools.partial(ramp, epochs=0), rule)
    check("momentum", lambda epoch: epoch, rule)


def test_signature_and_binding_errors_are_those_of_the_function():
    assert list(inspect.signature(Loss).parameters) == [
        "dim",
        "temperature",
        "size",
    ]
    with pytest.raises(TypeError, match="dim"):
        Loss()


def test_rule_for_an_argument_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="no"):
        checked(seed=whole())(lambda dim: dim)


def test_a_fault_of_a_schedule_is_the_cause_of_the_message():
    def broken(epoch):
        return epoch + "1"

    with pytest.raises(ArgumentError) as refusal:
        check("momentum", broken, schedule(number(0, 1)))
    assert isinstance(refusal.value.__cause__, TypeError)
    assert refusal.value.__cause__.__traceback__.tb_next is not None
