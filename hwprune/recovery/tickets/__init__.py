"""Lottery tickets: masks that are found by training, pruning and rewinding, several seeds side by side.

It uses the training loop.

Begin with `drawing`; `course` is what one seed goes through.
"""
