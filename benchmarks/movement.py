"""Why movement pruning ruins a pretrained transformer in a short training: which 27 % of its weights are removed at once.

    python benchmarks/movement.py [--share 0.27]

MiniLM with a head on SST-2, one batch's gradient. Weights are removed by size; by size with scores shifted at random; by size with the
same shift in the direction of the movement score, -sign(gradient * weight); and by that score alone, either way round.
"""

from __future__ import annotations

import argparse

import torch
import workloads
from common import heading
from torch.nn.functional import cross_entropy

SHIFT = 0.16
"""Of the layer's root mean square: one step of Adam on scores that may travel by two in sixteen steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.27)
    options = parser.parse_args()
    heading("movement scores after one step")
    workload = workloads.minilm()
    model = workload.model.eval()
    batches = list(workload.batches("train"))[:2]
    parameters = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "encoder.layer" in n}
    draw = torch.Generator().manual_seed(0)

    def losses() -> str:
        with torch.no_grad():
            return " | ".join(f"{float(cross_entropy(model(*inputs), labels)):.3f}" for inputs, labels in batches)

    cross_entropy(model(*batches[0][0]), batches[0][1]).backward()

    def scores(kind: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        size = weight.abs() / weight.square().mean().sqrt()
        moves = -torch.sign(gradient * weight)
        chance = torch.rand(weight.shape, generator=draw)
        return {
            "size": size, "chance": chance, "size, shifted by chance": size + SHIFT * torch.sign(chance - 0.5),
            "size, shifted by movement": size + SHIFT * moves, "movement": moves + 1e-3 * chance, "movement, reversed": 1e-3 * chance - moves,
        }[kind]  # fmt: skip

    print("| removed by | loss of the same batch | of another |\n| --- | --- | --- |")
    print(f"| nothing | {losses()} |")
    for kind in ("size", "chance", "size, shifted by chance", "size, shifted by movement", "movement", "movement, reversed"):
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                assert p.grad is not None
                found = scores(kind, kept[name], p.grad)
                p.mul_(found > found.flatten().kthvalue(int(options.share * p.numel())).values)
            print(f"| {kind} | {losses()} |", flush=True)
            for name, p in parameters.items():
                p.copy_(kept[name])


if __name__ == "__main__":
    main()
