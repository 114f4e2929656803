"""Latency that can be believed: paired, with an interval, in processes that may crash."""
