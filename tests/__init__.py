"""Tests of softnlb: one file per module, the simulator, scenario files, labs end to end."""
