"""Bundles as files for other people's software: Frigate, pycoral, libcoral, any TFLite program."""
