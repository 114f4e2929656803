"""Helpers that know nothing of pruning: typed files, numbers as text, plug-ins, old import paths.

Everything may use them.

Begin with `files` (TOML and JSON with all faults at once) and `formatting` (units as text).
"""
