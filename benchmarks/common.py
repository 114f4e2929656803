"""What every benchmark prints first, and small helpers."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hwprune.latency import fingerprint
from hwprune.searching.recording import versions

ROOT = Path(__file__).resolve().parents[1]


def heading(text: str) -> None:
    """Machine, load and versions beside the numbers."""
    found = versions()
    print(f"# {text}")
    print(
        f"{fingerprint.device_name()}, {fingerprint.isa()}, {platform.system()}; load {fingerprint.conditions()['load_average']}"
    )
    print(", ".join(f"{name} {found[name]}" for name in ("hwprune", "python", "torch", "onnxruntime", "optuna") if name in found))
    print()


def hwprune(*arguments: str) -> str:
    """Run the command line; returns stdout, stops at an error."""
    command = [sys.executable, "-m", "hwprune.cli.main", *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def import_torchvision() -> Any:
    """torchvision, also where its wheel was built for another PyTorch than the one installed."""
    register = torch.library.register_fake

    def tolerant(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **kwargs)

    torch.library.register_fake = tolerant  # type: ignore[assignment]
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return torchvision
