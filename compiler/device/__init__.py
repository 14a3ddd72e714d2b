"""What the Edge TPU takes and what things cost on it and on the host."""
