"""The search: space, samplers, store, evaluator, session. The only place that knows Optuna."""
