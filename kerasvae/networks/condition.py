"""The second input of a conditional network: standardised covariates, (batch, c)."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["condition_input", "inputs_of", "with_condition"]


def condition_input(size: int) -> keras.KerasTensor | None:
    """The input for `size` columns; None for none."""
    return keras.Input((size,), name="condition") if size else None


def with_condition(x: keras.KerasTensor, condition: keras.KerasTensor | None) -> keras.KerasTensor:
    """Features (batch, n) with the condition's columns behind them, (batch, n + c)."""
    return x if condition is None else keras.layers.Concatenate()([x, condition])


def inputs_of(main: keras.KerasTensor, condition: keras.KerasTensor | None) -> Any:
    """The inputs of a network: one, or both."""
    return main if condition is None else [main, condition]
