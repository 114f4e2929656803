"""``hf:FOLDER`` of a causal language model with a text -> a `Workload` of (tokens -> logits), judged by perplexity."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common import formatting
from hwprune.common.memory import memory_limit
from hwprune.errors import UsageError
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData, next_tokens
from hwprune.workload.workload import Workload

COPIES = 3
"""How often the weights are in memory, in 32 bits, at least: the model, its graph, and a candidate."""
ARGUMENTS = ("text", "length", "windows", "gguf", "batch")


def is_causal(architecture: str) -> bool:
    """Does a class of this name predict the next token?"""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def text_data(arguments: Mapping[str, Any]) -> TextData:
    """The texts that ``text=calibration.txt`` or ``text=calibration.txt,test.txt`` names, with ``length`` and ``windows``.

    Raises:
        UsageError: more than two texts, or a number that is none.
    """
    names = str(arguments["text"]).split(",")
    if len(names) > 2 or not all(names):
        raise UsageError(f"--text takes calibration.txt or calibration.txt,test.txt, got {arguments['text']!r}")
    numbers: dict[str, int] = {}
    for key, name in (("length", "length"), ("windows", "most")):
        value = arguments.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 2:
            raise UsageError(f"{key} must be a whole number, at least 2, got {value!r}")
        numbers[name] = value
    return TextData(Path(names[0]), Path(names[1]) if len(names) == 2 else None, **numbers)


def load(folder: str, model_of: Any, arguments: Mapping[str, Any]) -> Workload:
    """The whole model in memory, in 32 bits.

    Args:
        model_of: (folder) -> the model in eval mode.
        arguments: ``text`` (see `text_data`), ``length`` (tokens of a window), ``windows`` (that calibrate), ``gguf`` (a file in
            the folder that holds the weights), ``batch`` (windows in the batch whose latency counts; default 1).

    Raises:
        UsageError: an argument is unknown or wrong, a file is not there, or the model surely needs more memory than there is.
        WorkloadError: the library can't read the model or its tokenizer.
    """
    if unknown := [key for key in arguments if key not in ARGUMENTS]:
        raise UsageError(f"a language model with --text takes no argument {', '.join(unknown)} (known: {', '.join(ARGUMENTS)})")
    batch = arguments.get("batch", 1)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"batch must be a whole number of windows, at least 1, got {batch!r}")
    data = text_data(arguments)
    if "gguf" in arguments:
        with tempfile.TemporaryDirectory() as scratch:
            place = gguf_file.unpacked(Path(folder), str(arguments["gguf"]), Path(scratch) / "dense")
            model: nn.Module = model_of(str(place))
            calibration, judged = data.read(place)
    else:
        _check_memory(Path(folder))
        model = model_of(folder)
        calibration, judged = data.read(Path(folder))
    half = max(1, len(judged) // 2)
    return Workload(
        name=Path(folder).name,
        model=model.float(),
        example_inputs=(calibration[:1].repeat(batch, 1),),
        calibration=_batches(calibration),
        validation=_batches(judged[:half]),
        test=_batches(judged[half:]) if len(judged) > 1 else None,
        train=_batches(calibration),
        metric="perplexity",
    )


def _check_memory(folder: Path) -> None:
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118 - no mapping
    needed, here = 4 * COPIES * count, memory_limit()
    if needed > here:
        raise UsageError(
            f"{folder} needs at least {formatting.size(needed)} of memory as a whole, and there are {formatting.size(here)}: "
            "`hwprune apply ... --format huggingface` and `hwprune.prune_folder` prune it block by block"
        )


def _batches(ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(one, next_tokens(one)) for one in torch.split(ids, 1)]
