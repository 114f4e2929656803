"""Ways of choosing and updating the weights of one layer: criteria with a mask and a repair, OBS, SparseGPT.

It uses criteria, patterns and second-order algebra.

Begin with `method` (the table) and `layerwise` (one layer).
"""
