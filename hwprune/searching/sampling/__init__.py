"""What to try next: a knapsack over measured savings and predicted divergence, and Optuna's own samplers.

It uses the search space and the finished trials of the study.

Begin with `knapsack` (Optuna's side), then `posterior` (what is believed) and `proposals` (what follows from it).
"""
