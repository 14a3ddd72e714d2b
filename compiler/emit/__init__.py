"""Writes segments: TFLite for the Edge TPU, ONNX for the host."""
