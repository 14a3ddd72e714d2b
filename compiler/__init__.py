"""Compiles ONNX models into bundles of int8 segments for Coral Edge TPUs."""
