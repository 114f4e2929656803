"""The axis engine: which parts of a model can be removed, and removing them."""
