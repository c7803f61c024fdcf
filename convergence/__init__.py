"""Who is a member of the cluster and who owns which bucket.

Pure: nothing in this package reads a clock, draws a random number, opens a socket or sleeps.
Time enters as ``now_ms``, frames as bytes; what to do leaves as a tuple of outputs.
"""
