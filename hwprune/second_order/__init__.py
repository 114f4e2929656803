"""Second-order linear algebra: what removing weights costs a layer's output, and how the others make up for it.

Pure functions of tensors. ``H`` is the (damped) second moment of a layer's inputs, d x d; a layer's loss is
``tr((W' - W) H (W' - W)^T)``, the mean squared change of its outputs.

Begin with `hessian`, then `exact` (one weight at a time) and `sparsegpt` (column by column).
"""
