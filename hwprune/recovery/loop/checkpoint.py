"""A training run on disk: one safetensors file, written atomically, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

FILE = "recovery.safetensors"


@dataclass(slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not been stopped.

    Attributes:
        facts: JSON values: step, best score, history, ...
        tensors: group (``weights``, ``best``, ``optimizer``, ...) -> name -> tensor.
    """

    facts: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
            for group, named in self.tensors.items()
            for name, tensor in named.items()
        }
        flat["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():  # dropout there draws from the device's own
            flat["rng/cuda"] = torch.cuda.get_rng_state()
        data = save(flat, {"facts": json.dumps(self.facts)})
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """The checkpoint, or None if there is none that can be read."""
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), "pt") as stored:
                facts = json.loads((stored.metadata() or {})["facts"])
                tensors: dict[str, dict[str, torch.Tensor]] = {}
                for key in stored.keys():  # noqa: SIM118 - it is no dict
                    group, _, name = key.partition("/")
                    tensors.setdefault(group, {})[name] = stored.get_tensor(key)
            return cls(dict(facts), tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None


def restore_random(state: Mapping[str, torch.Tensor]) -> None:
    """Let random numbers go on as when the checkpoint was written."""
    torch.set_rng_state(state[""])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State of an optimizer by position of its parameters."""
    tensors = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for key, value in (optimizer.state.get(parameter) or {}).items():
            tensors[f"{place}/{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(float(value))
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        place, _, name = key.partition("/")
        parameter = parameters[int(place)]
        # Adam counts its steps in a tensor on the CPU, wherever the parameters are.
        moved = value.to(parameter.device) if value.shape == parameter.shape else value
        optimizer.state[parameter][name] = moved.clone()


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
