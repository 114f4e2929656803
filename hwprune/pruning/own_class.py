"""A candidate's weights put back into the user's own class, so that people go on with their own training code."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from hwprune import patterns
from hwprune.errors import UsageError, described
from hwprune.pruning.candidate import Candidate

TOLERANCE = 1e-5

_SIZES: dict[type[nn.Module], tuple[tuple[str, str, int], ...]] = {
    nn.Linear: (("out_features", "weight", 0), ("in_features", "weight", 1)),
    nn.Embedding: (("num_embeddings", "weight", 0), ("embedding_dim", "weight", 1)),
    nn.BatchNorm1d: (("num_features", "running_mean", 0),),
    nn.BatchNorm2d: (("num_features", "running_mean", 0),),
    nn.BatchNorm3d: (("num_features", "running_mean", 0),),
    nn.GroupNorm: (("num_channels", "weight", 0),),
    nn.PReLU: (("num_parameters", "weight", 0),),
}
"""Layers of PyTorch whose sizes are attributes: (attribute, tensor, dim)."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def apply_to_module(model: nn.Module, candidate: Candidate) -> nn.Module:
    """A copy of ``model``, of its own class, with the candidate's shapes and weights.

    The sizes that layers of PyTorch remember are set from the new shapes. Whole numbers that other modules remember
    (``num_heads``, ``head_dim``, ...) are set where a size of their own parameters changed from exactly that number. The copy
    is then run on the candidate's example inputs: it is returned only if it computes what the candidate does.

    Raises:
        UsageError: the class can't hold the candidate: a branch was dropped, sizes are fixed in its forward, or tensors differ
            in name. ``candidate.module`` is trainable as it is.
    """
    advice = "Go on with candidate.module, which is trainable and holds the same parameter names"
    if candidate.drop:
        raise UsageError(
            f"branches were dropped ({', '.join(candidate.drop)}), which the class {type(model).__name__} can't do. {advice}"
        )
    new = {
        **dict(candidate.module.named_parameters(remove_duplicate=False)),
        **dict(candidate.module.named_buffers(remove_duplicate=False)),
    }
    if tokens := [choice.unit for choice in candidate.recipe.choices if choice.pattern in patterns.TOKENS]:
        raise UsageError(
            f"tokens are made fewer ({', '.join(tokens)}), which the class {type(model).__name__} can't do. {advice}"
        )
    failure: Exception | None = None
    for adjust in (True, False):
        copied = copy.deepcopy(model)
        _fill(copied, new)
        _set_layer_sizes(copied)
        if adjust:
            _set_remembered_sizes(copied, model, candidate)
        try:
            if _same(copied.eval(), candidate):
                copied.train(model.training)
                return copied
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            failure = error
    raise UsageError(
        f"{type(model).__name__} can't hold the candidate's shapes"
        + (f" ({described(failure)})" if failure else ": it computes something else with them")
        + f". {advice}"
    )


def _fill(model: nn.Module, new: Mapping[str, torch.Tensor]) -> None:
    """Replace every parameter and buffer by the candidate's of the same name; tied ones stay tied."""
    done: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                full = f"{prefix}.{name}" if prefix else name
                if old is None or full not in new:
                    continue
                source = new[full]
                if id(old) not in done:
                    value = source.detach().clone()
                    done[id(old)] = (
                        nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
                    )
                table[name] = done[id(old)]


def _set_layer_sizes(model: nn.Module) -> None:
    for module in model.modules():
        for kind, entries in _SIZES.items():
            if isinstance(module, kind):
                for attribute, tensor, dim in entries:
                    value = getattr(module, tensor, None)
                    if value is not None:
                        setattr(module, attribute, value.shape[dim])
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        if isinstance(module, _CONVOLUTIONS):
            _set_convolution(module)
        elif isinstance(module, _TRANSPOSED) and module.groups == 1:
            module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1]


def _set_convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    out, per_group = module.weight.shape[0], module.weight.shape[1]
    if module.groups == module.in_channels and per_group == 1:  # depthwise: a group for each channel
        module.groups = out // max(1, module.out_channels // module.in_channels)
    module.out_channels, module.in_channels = out, per_group * module.groups


def _set_remembered_sizes(copied: nn.Module, model: nn.Module, candidate: Candidate) -> None:
    """Whole numbers of modules that are not PyTorch's own layers."""
    olds = dict(model.named_parameters(remove_duplicate=False))
    news = dict(copied.named_parameters(remove_duplicate=False))
    for prefix, module in copied.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention):
            continue
        start = f"{prefix}." if prefix else ""
        changes: dict[int, set[int]] = {}
        for name, old in olds.items():
            if name.startswith(start) and name in news:
                for before, after in zip(old.shape, news[name].shape, strict=True):
                    changes.setdefault(before, set()).add(after)
        for name, keep in candidate.keeps.items():
            if name.startswith(start):
                changes.setdefault(len(keep), set()).add(int(keep.sum()))
        for attribute, value in list(vars(module).items()):
            if type(value) is int and len(sizes := changes.get(value, ())) == 1:
                setattr(module, attribute, next(iter(sizes)))


@torch.no_grad()
def _same(copied: nn.Module, candidate: Candidate) -> bool:
    """Does the copy compute what the candidate computes?"""
    inputs = candidate.example_inputs
    tree = torch.utils._pytree.tree_leaves
    ours = [x for x in tree(copied(*inputs)) if isinstance(x, torch.Tensor)]
    theirs = [x for x in tree(candidate.module.eval()(*inputs)) if isinstance(x, torch.Tensor)]
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return False
    for mine, other in zip(ours, theirs, strict=True):
        scale = max(float(other.double().abs().max()), 1e-30) if other.numel() else 1.0
        if other.numel() and not float((mine.double() - other.double()).abs().max()) <= 10 * TOLERANCE * scale:
            return False
    return True
