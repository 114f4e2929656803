"""A causal language model in a Hugging Face folder, read tensor by tensor."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.errors import UsageError, WorkloadError, described
from hwprune.streaming import uneven_model
from hwprune.workload.language import is_causal

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
UNEVEN = "uneven"
"""Where config.json tells blocks' own sizes: ``class``, ``model_type``, and what `uneven_model.resize` takes."""


class OtherNamesError(WorkloadError):
    """The files name tensors otherwise than the class does: `unpacking` writes them under its names."""


class LanguageFolder:
    """The folder: its configuration, its class, and which file holds which tensor. No weights are loaded.

    Args:
        path: a folder with config.json and safetensors, as ``save_pretrained`` writes it.

    Attributes:
        config: the model's configuration, with its cache switched off.
        kind: the class in the transformers library.
        skeleton: the model without weights (on PyTorch's meta device); buffers that no file holds are real.
        blocks: name of the list of repeated blocks, such as ``model.layers``.
        files: tensor name -> file that holds it.

    Raises:
        UsageError: there is no such folder, or transformers is not installed.
        WorkloadError: it is no causal language model, its weights are not in safetensors, or under other names.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise UsageError(f"{self.path} holds no config.json: give the folder of a Hugging Face model")
        transformers = _library()
        try:
            self.config: Any = _config(transformers, self.path)
            name = (self.config.architectures or [""])[0]
            self.kind: Any = getattr(transformers, name)
        except Exception as error:  # the library raises what it meets
            raise WorkloadError(f"{self.path} can't be read as a model of transformers: {described(error)}") from error
        if not is_causal(name):
            raise WorkloadError(f"{self.path} holds a {name}, which is no causal language model")
        self.config.use_cache = False
        self.files = _files(self.path)
        self.skeleton = skeleton(self.kind, self.config)
        self.blocks = _blocks(self.skeleton)
        known = set(self.skeleton.state_dict())
        if missing := sorted(known - set(self.files) - self._tied()):
            raise OtherNamesError(
                f"{self.path} holds {len(self.files)} tensors, but not {missing[0]} ({len(missing)} are missing): transformers "
                "keeps this class's weights under other names in files than in memory"
            )

    @property
    def uneven(self) -> bool:
        """Do blocks have sizes of their own, which the class itself does not know?"""
        return hasattr(self.config, UNEVEN)

    def whole(self) -> nn.Module:
        """The whole model in 32 bits, in eval mode."""
        if self.uneven:
            made = copy.deepcopy(self.skeleton)
            fill(made, {name: x.float() for name, x in self.load(self.files).items()})
            if getattr(self.config, "tie_word_embeddings", False):
                made.tie_weights()  # type: ignore[operator]
            return made.eval()
        model: nn.Module = self.kind.from_pretrained(str(self.path), dtype=torch.float32).eval()
        return model

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have; None: its configuration does not say."""
        found = getattr(self.config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(list(self.skeleton.get_submodule(self.blocks).children()))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights in the files."""
        return next(iter(self.load([next(iter(self.files))]).values())).dtype

    def block_tensors(self, index: int) -> list[str]:
        """Names of the tensors of a block."""
        start = f"{self.blocks}.{index}."
        return [name for name in self.files if name.startswith(start)]

    def other_tensors(self) -> list[str]:
        """Names of the tensors that are in no block."""
        return [name for name in self.files if not name.startswith(f"{self.blocks}.")]

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors as they are in the files."""
        from safetensors import safe_open

        found: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            opened: dict[str, Any] = {}
            for name in names:
                file = self.files[name]
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(str(self.path / file), framework="pt"))
                found[name] = opened[file].get_tensor(name)
        return found

    def block(self, index: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A block with its weights, in eval mode."""
        start = f"{self.blocks}.{index}."
        made = copy.deepcopy(self.skeleton.get_submodule(f"{self.blocks}.{index}"))
        fill(made, {name.removeprefix(start): x.to(dtype) for name, x in self.load(self.block_tensors(index)).items()})
        return made.eval()

    def ends(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The whole model with the weights of all but the blocks, in eval mode. Its blocks have none."""
        made = copy.deepcopy(self.skeleton)
        fill(made, {name: x.to(dtype) for name, x in self.load(self.other_tensors()).items()})
        if getattr(self.config, "tie_word_embeddings", False):
            made.tie_weights()  # type: ignore[operator]
        return made.eval()

    def _tied(self) -> set[str]:
        """Tensors that are others by another name, and need not be in a file."""
        if not getattr(self.config, "tie_word_embeddings", False):
            return set()
        found = getattr(self.skeleton, "_tied_weights_keys", None) or []
        return set(found)


def skeleton(kind: Any, config: Any) -> nn.Module:
    """A model without weights: parameters on the meta device; buffers, which the class computes itself, are real."""
    with _no_parameters():
        model: nn.Module = getattr(kind, "_from_config", kind)(config)
        if uneven := getattr(config, UNEVEN, None):
            uneven_model.resize(model, uneven)
    return model.eval()


@contextmanager
def _no_parameters() -> Iterator[None]:
    """Every parameter that a module registers loses its numbers at once, so that no more than one is in memory."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def bare(kind: Any, config: Any) -> nn.Module:
    """A model without any numbers: parameters and buffers on the meta device."""
    with torch.device("meta"):
        model: nn.Module = getattr(kind, "_from_config", kind)(config)
    return model


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in the place of a module's parameters and buffers; shapes may differ from those that were there."""
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        part = module.get_submodule(owner)
        if last in part._parameters:
            part._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        elif last in part._buffers:
            part._buffers[last] = tensor


def _config(transformers: Any, path: Path) -> Any:
    """The configuration; code that lies beside it is not run."""
    facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if UNEVEN not in facts:
        return transformers.AutoConfig.from_pretrained(str(path))
    facts["model_type"], facts["architectures"] = facts[UNEVEN]["model_type"], [facts[UNEVEN]["class"]]
    return transformers.AutoConfig.for_model(
        **{key: value for key, value in facts.items() if key not in ("auto_map", "block_configs")}
    )


def _files(path: Path) -> dict[str, str]:
    index = path / INDEX
    if index.is_file():
        return dict(json.loads(index.read_text())["weight_map"])
    if not (path / WEIGHTS).is_file():
        raise WorkloadError(f"{path} has neither {WEIGHTS} nor {INDEX}: save the model with safe_serialization")
    from safetensors import safe_open

    with safe_open(str(path / WEIGHTS), framework="pt") as opened:
        return dict.fromkeys(opened.keys(), WEIGHTS)


def _blocks(model: nn.Module) -> str:
    """The longest list of modules of one class."""
    lists = [
        (len(part), name)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len({type(entry) for entry in part}) == 1
    ]
    if not lists:
        raise WorkloadError(f"{type(model).__name__} has no list of repeated blocks: it can't be pruned block by block")
    return str(max(lists)[1])


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"language models need transformers: pip install transformers ({error})") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
