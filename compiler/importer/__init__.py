"""From a file of the user to a valid, static-shaped graph."""
