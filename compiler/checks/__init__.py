"""What is compared with what the user gave: passes, segments, results."""
