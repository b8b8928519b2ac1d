"""Checks of plain arguments: the value comes back, anything else is named."""

import fractions

import numpy as np
import pytest
import torch

from toolkit import checks

HUGE = 10**400


class Mute:
    """Something that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [0, -1.5, 3, np.float32(0.1), fractions.Fraction(1, 3)])
def test_a_finite_number_is_returned_as_a_float(value):
    assert checks.is_finite_number(value)
    assert type(checks.finite("x", value)) is float


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), True, "0.1", None, [0.1], HUGE, -HUGE, 1j, torch.ones(1), Mute()],
)
def test_what_is_no_finite_number_is_refused(value):
    """10**400 ended in an error of a numpy function that does not take integers so large."""
    assert not checks.is_finite_number(value)
    for check in (checks.finite, checks.positive, checks.not_negative):
        with pytest.raises(ValueError, match=r"^lr must be .*, received "):
            check("lr", value)


def test_the_sign_of_a_number_is_checked():
    for value in (0, -1e-9, fractions.Fraction(1, HUGE)):
        with pytest.raises(ValueError, match="lr must be a positive number, received"):
            checks.positive("lr", value)
    with pytest.raises(ValueError, match="wd must be zero or positive, received -1"):
        checks.not_negative("wd", -1)
    assert checks.not_negative("wd", 0) == 0.0 and checks.positive("lr", 2) == 2.0
    assert checks.positive("clip", None, optional=True) is None
    with pytest.raises(ValueError, match="clip must be None or a positive number, received 0"):
        checks.positive("clip", 0, optional=True)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None, float("nan")])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match="steps must be a positive integer, received"):
        checks.whole("steps", value)


def test_a_whole_number_may_be_missing_and_a_seed_be_zero():
    assert checks.whole("n", None, optional=True) is None and checks.whole("n", 7) == 7
    assert checks.check_seed(0) == 0
    for value in (-1, 2**63, 0.5, True, None):
        with pytest.raises(ValueError, match=r"seed must be an integer from 0 to .*, received"):
            checks.check_seed(value)
    with pytest.raises(ValueError, match="n must be None or a positive integer, received 0"):
        checks.whole("n", 0, optional=True)


def test_flags_choices_and_dictionaries():
    assert checks.flag("in_place", False) is False
    assert checks.choice("on_error", "skip", ("raise", "skip")) == "skip"
    assert checks.choice("mode", None, (None, "cut")) is None
    assert checks.mapping("lora", None) is None and checks.mapping("lora", {}) == {}
    for value in (1, 0, "True", None):
        with pytest.raises(ValueError, match="in_place must be True or False, received"):
            checks.flag("in_place", value)
    for value in ("keep", True, 1, ["skip"], np.array(["skip", "raise"])):
        with pytest.raises(ValueError, match=r"on_error=.* is unknown; allowed: raise, skip"):
            checks.choice("on_error", value, ("raise", "skip"))
    with pytest.raises(ValueError, match="lora must be None or a dictionary, received 8"):
        checks.mapping("lora", 8)


def test_a_value_is_shown_in_one_short_line():
    assert checks.shown("a\nb") == r"'a\nb'"
    assert "\n" not in checks.shown(np.zeros((9, 9))) and len(checks.shown("x" * 10**6)) < 120
    assert checks.shown(10**5000) == "a value of type int"  # Python refuses to write it out
    assert checks.shown(Mute()) == "a value of type Mute"
