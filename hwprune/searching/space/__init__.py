"""The search space: the file that names what may be chosen, and what is left of it for one model on one target.

It uses the pruner's units and the target's profile.

Begin with `space` (the values), then `fitting` (how they come about).
"""
