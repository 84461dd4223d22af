"""`python -m segtailor`, as under torchrun."""

from segtailor.cli import main

main()
