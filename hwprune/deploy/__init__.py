"""The way from a point of the front to files that run elsewhere, and the check that they do.

It uses records, runtimes and the pruner.

Begin with `exporting`; `formats` is the table of formats, `verify` the check.
"""
