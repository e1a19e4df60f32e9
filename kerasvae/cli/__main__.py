"""`python -m kerasvae.cli`."""

from kerasvae.cli import main

main()
