"""Which node runs where."""
