"""The search: what is tried next, how a candidate becomes a trial, and what is delivered in the end.

It is the only place that knows Optuna. Its rooms: ``space`` (what may be chosen), ``study`` (trials in Optuna's storage),
``sampling`` (what to try next), ``evaluating`` (recipe -> trial), ``final`` (the front that is delivered).

Begin with `session` (one search from start to end) and `loop` (one trial after another).
"""
