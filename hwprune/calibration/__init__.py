"""What the calibration data tell of every layer: Gram matrices, gradients, which positions matter.

It uses the workload and the layers of a model; methods and compensation read what it gives.

Begin with `collect`; `passes` runs the data through the model.
"""
