"""What would be faster on a target, layer by layer, before any accuracy work."""
