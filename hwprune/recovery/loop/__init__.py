"""One training, from its first step or a checkpoint to its last one.

It uses a plan, a sparsifier and the workload's train split.

Begin with `run`; `stepping` is one step, `resuming` the checkpoints.
"""
