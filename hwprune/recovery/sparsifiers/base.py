"""What is removed stays removed while a model is trained."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import final

import torch
from torch import nn

from hwprune.errors import RunError

State = dict[str, torch.Tensor]


class Sparsifier(abc.ABC):
    """Decides during a training run which weights are zero. The model keeps its shapes meanwhile."""

    score_range: float | None = None
    """The distance that the optimizer may move `extra` by during the whole run; None: at the rate of the weights."""
    noise_range: float | None = None
    """The distance that the noise of single batches may move it by; None: any.

    A random walk of n steps comes score_range / sqrt(n) far.
    """

    short_trial: bool = False
    """Is it the short trial of a learning rate? All sparsity comes at once there: scores and penalties have no steps."""

    def extra(self) -> list[nn.Parameter]:
        """Parameters of its own that are trained along."""
        return []

    def to(self, device: torch.device) -> None:  # noqa: B027 - those without tensors have nothing to move
        """Move what it holds to where the model is trained, in place."""

    def state(self) -> State:
        """All that training changes of it: for checkpoints, and for training that begins anew."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Take back what `state` gave."""

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:  # noqa: ARG002 - most replace none
        """Tensors to run the model with instead of its parameters, with gradients to both."""
        return {}

    def penalty(self, module: nn.Module) -> torch.Tensor | None:  # noqa: ARG002
        """The term that is added to the loss; None: nothing."""
        return None

    def before_step(self, module: nn.Module) -> None:  # noqa: B027 - most do nothing here
        """Gradients are there, the optimizer has not used them yet."""

    @abc.abstractmethod
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """The optimizer has made a step; ``progress`` in (0, 1]."""


@final
class FixedMask(Sparsifier):
    """Fixed keep masks, held on weights, gradients, optimizer state and averaged copies."""

    def __init__(self, masks: Mapping[str, torch.Tensor]) -> None:
        """``masks``: parameter name -> keep mask in its shape."""
        self.masks = {name: mask.bool() for name, mask in masks.items()}

    def to(self, device: torch.device) -> None:
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}

    @torch.no_grad()
    def before_step(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        for name, mask in self.masks.items():
            if parameters[name].grad is not None:
                parameters[name].grad.mul_(mask)  # type: ignore[union-attr]

    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:  # noqa: ARG002
        self.hold(module, optimizer)

    @torch.no_grad()
    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero what is removed, in place. ``mul_`` would keep the sign of zero and NaN; weights are set."""
        parameters = dict(module.named_parameters())
        for name, mask in self.masks.items():
            parameter = parameters[name]
            parameter.masked_fill_(~mask, 0.0)
            for value in (optimizer.state.get(parameter) or {}).values() if optimizer is not None else ():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    value.masked_fill_(~mask, 0.0)

    def check(self, module: nn.Module) -> None:
        """Raise `RunError` if a single removed weight is not zero."""
        parameters = dict(module.named_parameters())
        for name, mask in self.masks.items():
            revived = int((parameters[name].detach()[~mask] != 0).sum())
            if revived:
                raise RunError(f"training has revived {revived} removed weights of {name}: a bug, please report it")
