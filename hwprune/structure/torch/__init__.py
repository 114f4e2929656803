"""The axis engine over PyTorch: capture by torch.export, walk by rules, cut and mask.

It uses the axis algebra; a rule for each ATen operator is in ``rules``.

Begin with `analyse` (a model becomes an `AxisGraph`) and `graph` (cut, mask, reorder).
"""
