"""Programs of others: edgetpu_compiler, its files, onnx-tf."""
