"""From a recipe to a candidate: cut, mask what is left, compensate; and the proof that the cut is right.

It uses the structure of the model, methods, compensation and calibration data.

Begin with `pruner`; `unit_options` says where the pruned weights come from, `cut_check` holds the proof.
"""
