"""Training after or during pruning: fine-tuning, distillation, gradual pruning, learned masks, lottery tickets.

Its rooms: ``loop`` (one training), ``sparsifiers`` (what decides on masks meanwhile), ``tickets`` (lottery tickets). It uses the
pruner.

Begin with `recover` (a candidate is trained) and `plan` (what a training is to do).
"""
