"""From a recipe to a trial: pruned, written, run, scored, timed.

It uses the pruner, the bench that measures and the scoring of outputs; the loop calls it.

Begin with `evaluator`; `dense` is the same for the dense model.
"""
