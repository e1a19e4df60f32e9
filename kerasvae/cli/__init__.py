"""The command line: the composition root, the one place that may import everything, and does so when needed."""

from kerasvae.cli.app import app, main

# each registers its commands, in the order in which --help lists them
from kerasvae.cli import make, study, relate, look, generate, ship, use, demo  # noqa: F401  # isort: skip

__all__ = ["app", "main"]
