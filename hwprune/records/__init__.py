"""Values that are stored and read again: recipes, targets, measurements, trials, records, the Pareto front.

No framework is imported here.

Begin with `record` (a run as record.json tells it) and `trial`.
"""
