"""Programs that stand for what no test machine has: libedgetpu with Edge TPUs, and
edgetpu_compiler."""
