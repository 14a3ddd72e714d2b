"""The compiler as a whole: from a file to a verified bundle."""
