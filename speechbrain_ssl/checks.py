"""Types and ranges of arguments, declared where they are used.

``checked`` puts the declaration in front of a constructor or function::

    @checked(temperature=number(above=0), queue_size=whole(1))
    def __init__(self, dim, temperature=0.1, queue_size=1024): ...

A value out of range raises an ``ArgumentError`` that names the argument. When
a YAML file is loaded, ``speechbrain_ssl.options`` adds the key.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class ArgumentError(ValueError):
    """An argument has a wrong type or is out of range."""

    def __init__(self, name: str, expected: str, value: Any):
        super().__init__(f"{name} must be {expected}, not {_text(value)}")
        self.argument = name


class Rule(NamedTuple):
    """What an argument must be."""

    # whether a value is accepted; may raise TypeError or ValueError for one
    # that is not
    holds: Callable[[Any], bool]
    text: str  # completes "must be ..."


def checked(**rules: Rule) -> Callable:
    """Decorator that checks arguments of a function or constructor by name.

    Defaults are not checked.

    Example
    -------
    >>> @checked(momentum=number(0, 1))
    ... def average(momentum=0.9):
    ...     return momentum
    >>> average(1.5)
    Traceback (most recent call last):
        ...
    speechbrain_ssl.checks.ArgumentError: momentum must be a number from 0 to 1, not 1.5
    """

    def decorate(target):
        if inspect.isclass(target):
            setattr(target, "__init__", decorate(target.__init__))  # noqa: B010
            return target
        signature = inspect.signature(target)
        if unknown := rules.keys() - signature.parameters.keys():
            raise TypeError(f"{target.__qualname__} has no {unknown}")

        @functools.wraps(target)
        def wrapped(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            for name, rule in rules.items():
                if name in given:
                    check(name, given[name], rule)
            return target(*args, **kwargs)

        return wrapped

    return decorate


def check(name: str, value: Any, rule: Rule) -> None:
    """Raises an ArgumentError if a value breaks a rule.

    ``name`` is the argument or key, for the message.
    """
    fault = None
    try:
        holds = rule.holds(value)
    except ArgumentError as error:  # of a schedule, which has arguments too
        raise ValueError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        holds, fault = False, error
    if not holds:  # a fault in a schedule of the user keeps its traceback
        raise ArgumentError(name, rule.text, value) from fault


def check_keys(settings: Mapping[str, Any], **rules: Rule) -> None:
    """Checks the values of several keys; an ArgumentError names the key."""
    for name, rule in rules.items():
        check(name, settings[name], rule)


def number(
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Rule:
    """A real number in a range; NaN never is.

    The bounds ``low`` and ``high`` are allowed themselves, ``above`` and
    ``below`` are not.
    """

    def holds(value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        return (
            low <= float(value) <= high
            and (above < float(value) or above == -math.inf)
            and (float(value) < below or below == math.inf)
        )

    return Rule(holds, "a number" + _range(low, high, above, below))


def whole(low: int = 0, high: float = math.inf) -> Rule:
    """A whole number in a range, bounds included."""

    def holds(value):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        return low <= int(value) <= high

    return Rule(holds, "a whole number" + _range(low, high))


def schedule(rule: Rule) -> Rule:
    """A number, or a schedule of such numbers.

    Of a schedule, the rule holds for its value at the first epoch and for the
    arguments ``start`` and ``stop`` that a YAML gives it.
    """

    def holds(value):
        if not callable(value):
            return rule.holds(value)
        values = [value(0.0)]
        given = getattr(value, "keywords", {})  # of a partial, from !name:
        values += [given[x] for x in ("start", "stop") if x in given]
        return all(map(rule.holds, values))

    return Rule(holds, f"{rule.text}, or a schedule of such numbers")


def each(rule: Rule, length: int | None = None) -> Rule:
    """A list, of a length or of any, whose items all follow a rule."""

    def holds(value):
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and length in (None, len(value))
            and all(map(rule.holds, value))
        )

    count = "" if length is None else f" of {length} items"
    return Rule(holds, f"a list{count}, each {rule.text}")


def interval(rule: Rule) -> Rule:
    """A pair [from, to] of values that both follow a rule."""

    def holds(value):
        return each(rule, 2).holds(value) and value[0] <= value[1]

    return Rule(holds, f"a pair [from, to] with from <= to, each {rule.text}")


def one_of(*choices: Any) -> Rule:
    """One of some values, of the same type.

    True, False and None among them are shown as in YAML.
    """

    def holds(value):
        return any(type(value) is type(c) and value == c for c in choices)

    return Rule(
        holds, " or ".join("null" if c is None else str(c) for c in choices)
    )


def optional(rule: Rule) -> Rule:
    """None, or what another rule says."""
    return Rule(
        lambda value: value is None or rule.holds(value),
        f"{rule.text}, or null",
    )


def _range(low, high, above=-math.inf, below=math.inf):
    """The range in words, for a message."""
    if low > -math.inf and high < math.inf:
        return f" from {low:g} to {high:g}"
    words = [
        f"{text} {bound:g}"
        for text, bound in (
            ("of at least", low),
            ("above", above),
            ("of at most", high),
            ("below", below),
        )
        if math.isfinite(bound)
    ]
    return "".join(f" {text}" for text in [" and ".join(words)] if text)


def _text(value):
    """A value as the user would write it."""
    if value is None:
        return "null"
    if isinstance(value, functools.partial):
        arguments = ", ".join(f"{k}: {v}" for k, v in value.keywords.items())
        return f"{value.func.__name__} with {arguments}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
