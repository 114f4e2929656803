"""Trials in Optuna's storage, with any number of processes at work on them, any of which may be killed.

It uses Optuna and the records of trials.

Begin with `store`; `lease` says who works on a trial, `rescue` what becomes of those whose process died.
"""
