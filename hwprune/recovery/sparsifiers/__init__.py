"""What decides on masks while a model is trained: one file a method.

Each is a `base.Sparsifier`, called before and after every step of the loop.

Begin with `base`, then `mask_learner`, from which the methods are made.
"""
