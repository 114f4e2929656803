"""Training after or during pruning: fine-tuning, distillation, gradual pruning, learned masks, lottery tickets."""
