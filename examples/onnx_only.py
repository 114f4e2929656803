"""Somebody gives you a model.onnx and an .npz with data, and nothing else.

    python examples/onnx_only.py                 # plays somebody: writes onnx_only/model.onnx and onnx_only/data.npz
    hwprune inspect onnx_only/model.onnx
    hwprune search onnx_only/model.onnx metric=top1 --data onnx_only/data.npz --trials 20 --out runs/onnx
    hwprune export runs/onnx --max-drop 0.01 --out deploy

The model that is shipped is the given graph, cut: names of inputs, outputs and nodes stay what they were.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from hwprune.onnx_files import to_onnx
from hwprune.workload import demos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("onnx_only"))
    options = parser.parse_args()
    workload = demos.get("digits")
    to_onnx.to_onnx(workload.model, workload.example_inputs, options.out / "model.onnx")
    arrays = {}
    for split in ("calibration", "validation", "test"):
        batches = list(workload.batches(split))
        arrays[f"{split}.input"] = torch.cat([inputs[0] for inputs, _ in batches]).numpy()
        arrays[f"{split}.targets"] = torch.cat([targets for _, targets in batches]).numpy()
    np.savez(options.out / "data.npz", allow_pickle=False, **arrays)
    print(f"written: {options.out / 'model.onnx'}, {options.out / 'data.npz'}")


if __name__ == "__main__":
    main()
