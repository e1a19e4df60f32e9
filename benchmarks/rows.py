"""A row of a benchmark's table."""

from __future__ import annotations

from typing import Any

__all__ = ["Row", "as_row"]

Row = dict[str, Any]


def as_row(
    name: str,
    value: Any,
    unit: str,
    peer: str | None = None,
    at_least: Any = None,
    aim: Any = None,
    ok: bool | None = None,
) -> Row:
    """A row without the versions; what each column is stands in README.md."""
    return {"name": name, "value": value, "unit": unit, "peer": peer, "at_least": at_least, "aim": aim, "ok": ok}
