"""Numbers as text: one minus sign, one word for what is missing, digits that fit the scale."""

import math

import numpy as np

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3, *, sign: bool = False, places: int | None = None) -> str:
    """A number with ``digits`` significant digits, or ``places`` decimals, and a true minus.

    Args:
        value: the number; NaN is ``n/a``.
        digits: significant digits.
        sign: write the sign of a positive number too; zero has none.
        places: digits after the point, in place of ``digits``.

    Example:
        >>> number(-0.01234), number(2, sign=True), number(481.96, places=1), number(float("nan"))
        ('−0.0123', '+2', '482.0', 'n/a')
    """
    value = float(value)
    if math.isnan(value):
        return "n/a"
    text = f"{value:+.{digits}g}" if places is None else f"{value:+,.{places}f}"
    if not sign or float(text.replace(",", "")) == 0:
        text = text.removeprefix("+")
    if value == 0 or (places is not None and float(text.replace(",", "")) == 0):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def places_for(*values: float) -> int:
    """Decimals that show two digits of the smallest of some numbers, four at most.

    Zeros and what is not finite do not count.

    Example:
        >>> places_for(-2.7, 479.3), places_for(-0.021), places_for(150.0)
        (1, 3, 0)
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    least = min(sizes, default=1.0)
    return min(max(1 - math.floor(math.log10(least)), 0), 4)


def largest(values, share: float = 1.0) -> float:
    """The end of a scale: that quantile of the sizes, their maximum where it is 0, then 1.

    What is not finite does not count.

    Example:
        >>> largest([1, -3, float("nan")]), largest([]), largest([0, 0, 0, 8], 0.5)
        (3.0, 1.0, 8.0)
    """
    sizes = np.abs(np.asarray(values, float))
    sizes = sizes[np.isfinite(sizes)]
    if not sizes.size:
        return 1.0
    return float(np.quantile(sizes, share)) or float(sizes.max()) or 1.0


def positive(name: str, value, kind: str = "a positive finite number") -> float:
    """The end of a scale that a caller gave.

    Raises:
        ValueError: for anything but a positive finite number.

    Example:
        >>> positive("vmax", 2)
        2.0
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return float(value)


def power_of_thousand(vmax: float) -> int:
    """The exponent e, a multiple of 3, that makes ``vmax / 10**e`` short to write.

    Example:
        >>> power_of_thousand(0.5), power_of_thousand(2.4e-5)
        (0, -6)
    """
    return 0 if vmax == 0 or 0.1 <= vmax < 1000 else 3 * math.floor(math.log10(vmax) / 3)


def short_number(value: float, vmax: float) -> str:
    """``value / 10**power_of_thousand(vmax)``, signed, with the digits that ``vmax`` deserves.

    Example:
        >>> short_number(-1.23e-5, 2.4e-5)
        '−12.3'
    """
    factor = 10.0 ** power_of_thousand(vmax)
    digits = 2 if vmax / factor < 10 else 1 if vmax / factor < 100 else 0
    return number(value / factor, sign=True, places=digits)


def rounded_down(value: float) -> str:
    """A positive number with two digits, never more than it is.

    Example:
        >>> rounded_down(0.000168), rounded_down(0.02)
        ('0.00016', '0.02')
    """
    if not 0 < value < math.inf:
        return f"{value:g}"
    power = math.floor(math.log10(value)) - 1
    return number(float(f"{math.floor(value / 10.0**power * (1 + 1e-12))}e{power}"), 2)


def unit_text(vmax: float) -> str:
    """The ``" ×10⁻⁶"`` that belongs to `short_number`, or nothing.

    Example:
        >>> unit_text(2.4e-5)
        ' ×10⁻⁶'
    """
    power = power_of_thousand(vmax)
    return f" ×{power_of_ten(power)}" if power else ""


def power_of_ten(power: int) -> str:
    """``10⁻⁶`` for −6.

    Example:
        >>> power_of_ten(-6)
        '10⁻⁶'
    """
    return f"10{str(power).translate(_RAISED)}"
