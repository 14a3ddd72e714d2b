"""From float to int8: samples, ranges, scales, weights."""
