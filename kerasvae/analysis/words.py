"""Numbers as a reader expects them."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["DASH", "count", "duration", "number", "signed", "significant"]

DASH = "–"
"""What stands where there is no number."""


def number(value: Any, digits: int = 3) -> str:
    """A number as text, with a proper minus sign; a dash where it is missing or not defined.

    >>> number(-0.1234), number(float("nan")), number(1630.97, 0)
    ('−0.123', '–', '1631')
    """
    if value is None or not math.isfinite(float(value)):
        return DASH
    text = f"{float(value):.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def significant(value: float) -> str:
    """Three digits that tell, whatever the unit.

    >>> significant(-1234.5), significant(0.0123456)
    ('−1.23e+03', '0.0123')
    """
    return DASH if not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def signed(value: float) -> str:
    """The same with its sign; 0 has none.

    >>> signed(17.85), signed(-0.5), signed(0.0)
    ('+17.9', '−0.5', '0')
    """
    return "0" if value == 0 else f"{value:+.3g}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as text, in minutes from two minutes on.

    >>> duration(24.9), duration(600)
    ('25 seconds', '10.0 minutes')
    """
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> count(1, "person", "people"), count(2, "warning")
    ('1 person', '2 warnings')
    """
    return f"{n} {one if n == 1 else many or one + 's'}"
