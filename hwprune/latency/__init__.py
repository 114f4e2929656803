"""Latency that can be believed: paired, with an interval, in processes that may crash.

It uses runtimes only, and no torch, so that the measuring process starts at once.

Begin with `paired` (the measurement), `bench` and `worker` (the two ends of the pipe), `source` (where a search's latencies come
from).
"""
