"""What the user brings: a model, data and how to judge; found by name, checked, and scored.

It uses nothing of the search.

Begin with `workload` (the value), `loading` (from a name to it) and `scoring`.
"""
