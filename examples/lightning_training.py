"""Prune a network and train it again with PyTorch Lightning, then export what was trained.

    pip install hwprune lightning
    python examples/lightning_training.py --out trained

The loop is Lightning's: loggers, devices, precision and checkpoints as you are used to. `hwprune.recover(fit=...)` holds what was
removed at zero, scores the network before and after on the validation split, and keeps the better of the two.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

import hwprune
from hwprune import demos


def train(network: torch.nn.Module, loader: DataLoader, epochs: int, rate: float) -> None:
    """A training as you would write it for any network that gives scores of classes."""
    import pytorch_lightning as lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _number: int) -> torch.Tensor:
            inputs, labels = batch
            loss = torch.nn.functional.cross_entropy(self.network(inputs), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=rate)

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(Classifier(), loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    workload = demos.get("digits")
    assert workload.train is not None
    inputs, labels = (torch.cat(column) for column in zip(*workload.train, strict=True))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)

    def fit(network: torch.nn.Module) -> None:
        network.train()  # it comes in eval mode
        train(network, loader, options.epochs, rate=1e-3)

    recipe = hwprune.uniform_recipe(workload, pattern="channel", sparsity=options.sparsity)
    candidate = hwprune.prune(workload, recipe)
    made = hwprune.recover(workload, candidate, fit=fit)
    before, after = made.outcome.before, made.outcome.after
    print(f"{workload.scoring.name} on validation: {before.value:.4f} pruned, {after.value:.4f} trained")
    made.candidate.export(options.out)
    print(f"Files: {options.out}")


if __name__ == "__main__":
    main()
