"""Numbers as text: one minus sign, one word for what is missing, digits that fit the scale."""

import math

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
