"""The forms in which people bring models, as a module that takes its inputs by position and follows eval()."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Around(nn.Module):
    """A model that is called in another way; its tensors keep their names.

    Attributes:
        whole: the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self._whole = [model]  # in a list, so that it is no child of its own

    @property
    def whole(self) -> nn.Module:
        return self._whole[0]

    def train(self, mode: bool = True) -> Around:  # noqa: FBT001, FBT002 - PyTorch's signature
        super().train(mode)
        self._whole[0].training = mode
        return self


class ByKeyword(Around):
    """A model whose forward takes its inputs by name."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__(model)
        self.names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.whole(**dict(zip(self.names, inputs, strict=True)))


class WithoutCache(Around):
    """A language model that does not hand back its keys and values of earlier tokens.

    With them every head would be an output of the model, and nothing of attention could be cut.
    """

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        return self.whole(*inputs, **named, use_cache=False)


def settled(model: Any, example_inputs: Any) -> tuple[Any, Any]:
    """(model, inputs by position) of what was brought; what is neither is given back as it is.

    A compiled or parallel model is the one inside it, an exported program its module, inputs may be one tensor or named.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    if isinstance(model, _WRAPPERS):
        model = model.module
    if isinstance(model, nn.Module):
        _let_switch(model)
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(model, nn.Module) or isinstance(model, Around):
        return model, example_inputs
    names = _names_alone(model)
    if _caches(model):
        model = WithoutCache(model)
    if isinstance(example_inputs, Mapping):
        return ByKeyword(model, list(example_inputs)), tuple(example_inputs.values())
    if names and isinstance(example_inputs, (tuple, list)) and len(example_inputs) == len(names):
        return ByKeyword(model, names), tuple(example_inputs)
    return model, example_inputs


def _caches(model: nn.Module) -> bool:
    """Would it hand back keys and values, as its configuration says?"""
    if not getattr(getattr(model, "config", None), "use_cache", False):
        return False
    try:
        return "use_cache" in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # a TorchScript method
        return False


def _let_switch(model: nn.Module) -> None:
    """Let an exported module be told to be in eval, which it is: it was exported as it runs."""
    try:
        model.train(model.training)
    except NotImplementedError:
        model.train = types.MethodType(lambda self, _mode=True: self, model)  # type: ignore[method-assign]
        model.eval = types.MethodType(lambda self: self, model)  # type: ignore[method-assign]


def _names_alone(model: nn.Module) -> list[str]:
    """The names of the inputs, where they can't be given by position."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a TorchScript method
        return []
    named = [p.name for p in parameters if p.kind is _KEYWORD and p.default is inspect.Parameter.empty]
    return named if not any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters) else []


def quantisation_aware(model: nn.Module) -> str | None:
    """Why a model that simulates INT8 is not cut, and what to bring; None for any other.

    Its ranges are observed while it runs and are those of the widths it was trained with; PyTorch can't trace them either.
    """
    if not any("FakeQuantize" in kind.__name__ for part in model.modules() for kind in type(part).__mro__):
        return None
    return (
        f"{type(model).__name__} simulates INT8 (prepare_qat): bring the model as it was before that (hwprune quantises what it "
        "prunes: --quantize int8), or the INT8 file that it was converted to, in QDQ form"
    )


def advice(model: nn.Module, inputs: Sequence[torch.Tensor], error: Exception) -> str | None:
    """What to do about a model that can't be traced, where its form says it; else None."""
    if isinstance(model, torch.jit.ScriptModule):
        return "A TorchScript module has no Python code left to trace: bring the nn.Module it was made from, or its ONNX file."
    reserved = sorted(name for name in model._modules if hasattr(torch.fx.GraphModule, name) and not hasattr(nn.Module, name))
    if reserved:
        return f"torch.export can't take a model with a layer called {' or '.join(reserved)}: give it another name."
    if isinstance(error, TypeError) and "argument" in str(error):
        try:
            wanted = str(inspect.signature(model.forward))
        except (TypeError, ValueError):
            return None
        return f"Its forward takes {wanted}, and example_inputs has {len(inputs)} tensor{'s' if len(inputs) != 1 else ''}."
    return None
