"""From a point of the front to files that run elsewhere, and the check that they do."""
