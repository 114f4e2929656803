"""The hidden width of a language model: which channels of the stream between blocks go, and the model without them.

Every tensor that holds the width is found by trying (see `config_sizes`), and cut alike everywhere. Channels are chosen before
the first block is pruned (see `channel_costs`). Losing channels changes what the norms divide by; each norm gets a factor for
that.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn

from hwprune.errors import UsageError
from hwprune.streaming import config_sizes
from hwprune.streaming.blocks import DecoderBlock, entering, leaving
from hwprune.streaming.folder import LanguageFolder, fill, skeleton
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.uneven_model import Silent

NEAR = (0.05, 0.15)
"""How far from what was asked the number of channels may be, as a share of all: at best, and at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Width:
    """Which channels stay, and where they are.

    Attributes:
        kept: (channels that stay,) int64, in order.
        dims: name of a tensor in the model -> its dims that are the width.
    """

    kept: torch.Tensor
    dims: Mapping[str, tuple[int, ...]]

    def of(self, prefix: str) -> Width:
        """For the names inside a part of the model, such as ``model.layers.3.``."""
        return Width(self.kept, {name.removeprefix(prefix): dims for name, dims in self.dims.items() if name.startswith(prefix)})

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The new shape of a tensor."""
        gone = self.dims.get(name, ())
        return tuple(len(self.kept) if dim in gone else size for dim, size in enumerate(shape))

    def cut(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors without the channels that go."""
        found = {}
        for name, tensor in tensors.items():
            found[name] = reduce(lambda x, dim: x.index_select(dim, self.kept), self.dims.get(name, ()), tensor).contiguous()
        return found


def dims_of(folder: LanguageFolder) -> dict[str, tuple[int, ...]]:
    """Name of a tensor -> its dims that are the hidden width.

    Raises:
        UsageError: the class makes other sizes of the width, too, so that it can't be changed alone.
    """
    size, found = config_sizes.followers_of_width(folder.kind, folder.config)
    inside = {name for name in found if name.startswith(f"{folder.blocks}.")}
    if not inside:
        raise UsageError(f"{folder.kind.__name__} has no hidden width of its own that could be cut (of {size})")
    return found


def narrow_skeleton(folder: LanguageFolder, width: Width) -> nn.Module:
    """The model of the new width without weights.

    Raises:
        UsageError: the class has no such width, or makes other numbers of the same channels, as Gemma does, which multiplies
            embeddings by the root of their width.
    """
    made = skeleton(folder.kind, _config(folder, width))
    ends, narrow = folder.ends(), copy.deepcopy(made)
    fill(narrow, {name: x.float() for name, x in width.cut(folder.load(folder.other_tensors())).items()})
    ids = torch.arange(min(8, ends.get_input_embeddings().weight.shape[0]))[None]  # type: ignore[operator]
    dense, mine = (entering(model, folder.blocks, ids)[0] for model in (ends, narrow))
    if not torch.allclose(mine, dense[..., width.kept], rtol=1e-3, atol=1e-6):
        raise UsageError(f"{folder.kind.__name__} makes something else of its embeddings when its width is another")
    return made


def _config(folder: LanguageFolder, width: Width) -> Any:
    shapes = {name: tuple(x.shape) for name, x in folder.skeleton.named_parameters(remove_duplicate=False)}
    wanted = {name: width.shape(name, shape) for name, shape in shapes.items()}
    return config_sizes.fitted(folder.kind, folder.config, wanted)


def count_near(
    folder: LanguageFolder, dims: Mapping[str, tuple[int, ...]], wanted: int, multiple: int, *, strict: bool = False
) -> int:
    """The number of channels nearest to ``wanted`` that the class takes: Llama's must be a multiple of its heads, for example.

    Args:
        multiple: it is a multiple of this, or else, so that it is near, of a half, a quarter, ... of it.
        strict: of ``multiple`` itself.

    Raises:
        UsageError: the class takes none that is near (strict: none at all that is a multiple).
    """
    full = next(folder.skeleton.get_parameter(name).shape[places[0]] for name, places in dims.items())

    def takes(count: int) -> bool:
        try:
            _config(folder, Width(torch.arange(count), dims))
        except UsageError:
            return False
        return True

    steps = [multiple // 2**halved for halved in range(1 if strict else multiple.bit_length())]
    for reach, step in itertools.product(NEAR, steps):
        near = [count for count in range(step, full, step) if abs(count - wanted) <= reach * full]
        for count in sorted(near, key=lambda count: abs(count - wanted)):
            if takes(count):
                return count
    why = f" that is a multiple of {multiple}" if strict else ""
    raise UsageError(f"{folder.kind.__name__} takes no hidden width near {wanted}{why} (it has {full})")


def narrowed(block: DecoderBlock, layer: nn.Module, width: Width, dense: HiddenStates, windows: Sequence[int]) -> DecoderBlock:
    """A block without the channels, its norms with a factor that makes up for what they divide by.

    Args:
        layer: a block of the narrow model (see `narrow_skeleton`), which is filled.
        width: for the names inside the block.
        dense: what enters the dense block.
    """
    kept = width.kept
    for name, part in block.layer.named_children():
        if isinstance(part, Silent):
            setattr(layer, name, part)
    made = DecoderBlock(layer, block.given).eval()
    fill(made.layer, width.cut(dict(block.layer.state_dict())))
    norms = {
        name: (block.layer.get_submodule(name), made.layer.get_submodule(name), _Products(made.layer.get_submodule(name)))
        for name in _norms(width, dict(block.layer.named_parameters()))
    }
    handles = [
        before.register_forward_hook(
            lambda _module, given, result, after=after, sums=sums: sums.add(after(given[0][..., kept]), result[..., kept])
        )
        for before, after, sums in norms.values()
    ]
    for window in windows:
        block(dense.read(window))
    for handle in handles:
        handle.remove()
    for _, after, sums in norms.values():
        _strengthen(after, sums.factor)
    return made


def _norms(width: Width, there: Mapping[str, torch.Tensor]) -> list[str]:
    """Modules whose weight is one number for each channel."""
    found = [name for name in width.dims if name in there and there[name].ndim == 1 and name.endswith(".weight")]
    return [name.removesuffix(".weight") for name in found]


class _Products:
    """Sums for the factor that brings what a norm makes, its bias apart, nearest to what it should make."""

    def __init__(self, norm: nn.Module) -> None:
        bias = norm._parameters.get("bias")
        self.bias = 0.0 if bias is None else bias.detach().double()
        self.product = self.energy = 0.0

    def add(self, made: torch.Tensor, wanted: torch.Tensor) -> None:
        """What a norm made in one window, and what it should have made: (1, tokens, channels) each."""
        mine, theirs = made.double() - self.bias, wanted.double() - self.bias
        self.product += float((mine * theirs).sum())
        self.energy += float(mine.square().sum())

    @property
    def factor(self) -> float:
        """1 where nothing tells."""
        return self.product / self.energy if self.energy > 0 and self.product > 0 else 1.0


def _strengthen(norm: nn.Module, factor: float) -> None:
    """Let a norm make so many times what it makes, its bias apart; some classes store a weight that something is added to."""
    weight = norm.get_parameter("weight").data
    probe = copy.deepcopy(norm)
    x = torch.linspace(-1, 2, len(weight)).expand(2, 1, -1)
    bias = probe._parameters.get("bias")
    if bias is not None:
        bias.data.zero_()
    made = []
    for value in (0.0, 1.0):
        probe.get_parameter("weight").data.fill_(value)
        made.append(probe(x).double())
    slope = made[1] - made[0]
    added = float((made[0] * slope).sum() / slope.square().sum().clamp(min=1e-30))
    weight.copy_(factor * (weight + added) - added)


@torch.no_grad()
def narrowed_ends(
    folder: LanguageFolder,
    narrow: nn.Module,
    width: Width,
    ids: torch.Tensor,
    dense: HiddenStates,
    pruned: HiddenStates,
    windows: Sequence[int],
) -> dict[str, torch.Tensor]:
    """The tensors outside the blocks without the channels, the last norm with a factor like those in the blocks.

    Args:
        narrow: see `narrow_skeleton`.
        width: for the names in the model.
        ids: (windows, tokens).
        dense, pruned: what leaves the last block.
    """
    ends = folder.ends()
    tensors = width.cut(folder.load(folder.other_tensors()))
    there = dict(ends.named_parameters())
    for name in _norms(width, {key: there[key] for key in tensors if key in there}):
        before = ends.get_submodule(name)
        after = copy.deepcopy(narrow.get_submodule(name))
        fill(after, width.of(f"{name}.").cut(dict(before.state_dict())))
        sums = _Products(after)
        last: list[torch.Tensor] = []
        handle = before.register_forward_pre_hook(lambda _module, given, last=last: last.append(given[0]))
        for window in windows:
            hidden = dense.read(window)
            last.clear()
            leaving(ends, folder.blocks, ids[window : window + 1], hidden)
            if last and last[-1].shape == hidden.shape and torch.equal(last[-1], hidden):  # it is the one behind the blocks
                sums.add(after(pruned.read(window)), before(hidden)[..., width.kept])
        handle.remove()
        _strengthen(after, sums.factor)
        tensors[f"{name}.weight"] = after.get_parameter("weight").detach().to(tensors[f"{name}.weight"].dtype)
    return tensors
