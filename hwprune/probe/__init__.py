"""What would be faster on a target, layer by layer, before any accuracy work.

It uses the bench and the latency table.

Begin with `probing`; `estimating` does it from a data sheet.
"""
