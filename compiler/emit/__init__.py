"""Writes bundles: TFLite segments for the Edge TPU, ONNX segments for the host, the manifest."""
