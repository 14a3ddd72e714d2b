"""Runs the programs of others, edgetpu_compiler and onnx-tf, and reads what they write."""
