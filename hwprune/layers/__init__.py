"""The layers of a model as matrices: what they read, what they make, which units can be decided on.

It uses the structure of the model.

Begin with `units` and `layer`; `statistics` is what calibration tells of a layer.
"""
