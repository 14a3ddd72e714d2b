"""`python -m compiler` is the same as the command `coral-bundle`."""

from compiler.cli import main

main()
