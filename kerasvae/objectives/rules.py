"""The rules of an objective's constants; each is refused with one sentence where it is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from kerasvae.errors import ArgumentError, nearest

__all__ = ["number", "one_of", "whole_number"]


def number(name: str, value: Any, *, least: float) -> float:
    """A finite number, `least` or more.

    >>> number("gamma", 3, least=0)
    3.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < math.inf:
        raise ArgumentError(name, rule=f"be a finite number, {least:g} or more", got=repr(value), fix="Change it")
    return float(value)


def whole_number(name: str, value: Any, *, least: int) -> int:
    """A whole number, `least` or more.

    >>> whole_number("samples", 5, least=1)
    5
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ArgumentError(name, rule=f"be a whole number, {least} or more", got=repr(value), fix=f"Use {least}")
    return int(value)


def one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    """One of the names in `valid`.

    >>> one_of("kernel", "rbf", ("imq", "rbf"))
    'rbf'
    """
    if value not in valid:
        fix = f"Did you mean {nearest(str(value), valid) or valid[0]!r}?"
        raise ArgumentError(name, rule=f"be one of {tuple(valid)}", got=repr(value), fix=fix)
    return str(value)
