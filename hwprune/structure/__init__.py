"""The axis engine: which parts of a model can be removed, and removing them.

``dims`` is the algebra, ``scope`` and ``axes`` what follows from it; ``torch`` and ``onnx`` walk the two kinds of graphs by
tables of rules.

Begin with `dims`, then `torch.analyse`.
"""
