"""The axis engine over ONNX: the same algebra, so that a candidate's file is cut from the dense one.

It uses the axis algebra; a rule for each ONNX operator is in ``rules``.

Begin with `graph`; `walk` finds the dims, `rewrite` the nodes after a cut.
"""
