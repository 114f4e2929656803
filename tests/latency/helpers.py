"""What several test files of this folder need."""

from __future__ import annotations

PROFILE = """
schema = 1
description = "a device"
device = "cuda"
runtime = "tensorrt"
precision = "fp16"
executes = ["channel"]
[channel_multiple]
default = 8
[roofline]
fp16_flops = { value = 1e12, source = "s" }
bandwidth_bytes_per_s = { value = 1e11, source = "s" }
launch_s = { value = 1e-6, source = "s" }
multiprocessors = { value = 10, source = "s" }
tiles = { value = [[64, 64, 8]], source = "s" }
"""
