"""The detector of `detector.py` cut by Torch-Pruning, measured as hwprune measures: mAP50 on the test images, time beside the dense file.

    python benchmarks/detector_peers.py [--ratios 0.1,0.2,0.3] [--epochs 0,2]

Torch-Pruning can't follow C2f's ``chunk`` (it raises an IndexError, which is told first). Its own example for YOLOv8 writes every C2f anew
with two convolutions in place of one; that is done here too, so that there is something to compare with. The layers that make the outputs
are named to it, as it asks. ``--epochs``: 0 is pruned only, with batch-norm statistics of the calibration images; else trained so long.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import detector
import torch
from common import heading
from torch import nn

from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.records import target as targets
from hwprune.workload import sample_files, scoring


class TwoConvolutions(nn.Module):
    """C2f with its first convolution as two, as Torch-Pruning's example for YOLOv8 has it."""

    def __init__(self, old: detector.C2f) -> None:
        super().__init__()
        self.left, self.right = self._half(old, slice(None, old.half)), self._half(old, slice(old.half, None))
        self.m, self.cv2 = old.m, old.cv2

    @staticmethod
    def _half(old: detector.C2f, part: slice) -> detector.Conv:
        made = detector.Conv(old.cv1.conv.in_channels, old.half)
        made.conv.weight.data = old.cv1.conv.weight.data[part].clone()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(made.bn, name).data = getattr(old.cv1.bn, name).data[part].clone()
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.left(x), self.right(x)]
        for block in self.m:
            y.append(block(y[-1]))
        return self.cv2(torch.cat(y, 1))


def rewritten(model: detector.Detector) -> detector.Detector:
    made = copy.deepcopy(model)
    for name, part in list(made.named_children()):
        if isinstance(part, detector.C2f):
            setattr(made, name, TwoConvolutions(part))
    return made.eval()


def cut(model: detector.Detector, ratio: float) -> detector.Detector:
    import torch_pruning

    made = copy.deepcopy(model)
    named = [branch[-1] for branch in (*made.head.boxes, *made.head.kinds)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        made, torch.zeros(1, 3, detector.SIZE, detector.SIZE), importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio, ignored_layers=named, round_to=8,
    )  # fmt: skip
    pruner.step()
    return made


def settled(model: nn.Module, images: torch.Tensor) -> None:
    """Batch-norm statistics of the calibration images."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for part in images.split(50):
            model(part)
    for norm in norms:
        norm.momentum = 0.03
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4")
    parser.add_argument("--epochs", default="0")
    options = parser.parse_args()
    heading("The detector by Torch-Pruning")
    torch.manual_seed(0)
    dense = detector.trained()
    try:
        cut(dense, 0.3)
    except Exception as error:  # noqa: BLE001 - what a user would see
        print(f"as it is: {type(error).__name__}: {error}")
    calibration = torch.cat([x for x, _ in detector.batches("train")[:6]])
    test = detector.batches("test")
    metric = detector.workload().scoring
    base = rewritten(dense)
    with torch.no_grad():
        apart = max(float((a - b).abs().max()) for a, b in zip(base(calibration[:2]), dense(calibration[:2]), strict=True))
    print(f"with two convolutions for one: outputs differ by {apart:.1g}\n")
    models: dict[str, nn.Module] = {}
    for ratio in map(float, options.ratios.split(",")):
        for epochs in map(int, options.epochs.split(",")):
            model = cut(base, ratio)
            if epochs:
                detector.train(model, epochs)
            else:
                settled(model, calibration)
            models[f"{ratio:g}, {epochs} epochs"] = model
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        files = {"dense": home / "dense.onnx"} | {name: home / f"{place}.onnx" for place, name in enumerate(models)}
        for name, model in {"dense": dense, **models}.items():
            program = torch.onnx.export(
                model.eval(), (torch.zeros(2, 3, detector.SIZE, detector.SIZE),), dynamo=True, dynamic_shapes=({0: "batch"},),
                verbose=False,
            )  # fmt: skip
            program.save(files[name])
        example, samples = home / "example.npz", home / "samples.npz"
        sample_files.write_batches([((test[0][0][:1],), None)], example)
        sample_files.write_batches([((x,), None) for x, _ in test], samples)
        target = targets.load("cpu")
        outputs = {}
        with Bench(target) as bench:
            for name, path in files.items():
                bench.load("model", path)
                bench.run("model", samples, home / "out.npz")
                outputs[name] = scoring.read_outputs(home / "out.npz")
        measured = fresh.remeasure(
            models and {name: files[name] for name in models}, files["dense"], example, lambda: Bench(target)
        )
    wanted = [target for _, target in test]
    print("| ratio, training | parameters | mAP50 | drop, points | speedup |\n|---|---|---|---|---|")
    for name, model in models.items():
        value, drop = scoring.score_and_drop(metric, outputs[name], outputs["dense"], wanted)
        speedup = measured[name].speedup
        print(
            f"| {name} | {sum(p.numel() for p in model.parameters()):,} | {value.value:.3f} | {100 * drop.value:.2f} "
            f"[{100 * drop.ci_low:.2f}, {100 * drop.ci_high:.2f}] | {speedup.value:.2f}x [{speedup.ci_low:.2f}, {speedup.ci_high:.2f}] |"
        )


if __name__ == "__main__":
    main()
