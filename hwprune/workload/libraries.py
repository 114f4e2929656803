"""``hf:NAME``, ``timm:NAME``, ``torchvision:NAME`` -> a `Workload`. The libraries are the user's; hwprune needs none of them."""

from __future__ import annotations

import importlib
import inspect
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.errors import UsageError, WorkloadError, described
from hwprune.workload import language
from hwprune.workload.workload import Workload

KINDS = ("hf", "timm", "torchvision")
_PACKAGES = {"hf": "transformers", "timm": "timm", "torchvision": "torchvision"}
HUB_TIMEOUT_S = 5.0
ARGUMENTS = ("batch", "metric", "weights")


DataOf = Callable[[Sequence[str]], tuple[Mapping[str, Any], Sequence[str]]]


class ByName(nn.Module):
    """A model whose inputs are not the first of its forward: they are passed by name."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)))


def model_of(kind: str, name: str, weights: str | None = None) -> nn.Module:
    """The model in eval mode, with its pretrained weights, or those of a file, or (``weights=none``) untrained ones.

    Args:
        weights: path of a state dict (.safetensors, or .pt/.pth that holds tensors alone), ``none``, or None: as the library has
            them, which may need the network. An ``hf`` name may be a folder.

    Raises:
        UsageError: the library is not installed, or has no such model or file.
        WorkloadError: the library can't load it, or the weights don't fit.
    """
    package = _PACKAGES[kind]
    try:
        library = importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{kind}:{name} needs {package}: pip install {package} ({error})") from error
    except RuntimeError as error:  # a torchvision that was built for another torch
        raise UsageError(f"{package} can't be imported beside this torch: {error}") from error
    bare = weights is not None
    if kind == "hf":
        _require_reachable(name)
    try:
        if kind == "hf":
            config = library.AutoConfig.from_pretrained(name)
            kind_of = getattr(library, (config.architectures or ["AutoModel"])[0])
            from_config = getattr(kind_of, "_from_config", kind_of)
            model: nn.Module = from_config(config) if bare else kind_of.from_pretrained(name, dtype=torch.float32)
        elif kind == "timm":
            model = library.create_model(name, pretrained=not bare)
        else:
            model = library.models.get_model(name, weights=None if bare else "DEFAULT")
    except Exception as error:  # the libraries raise what they meet: no such name, no network
        here = f" (there is no folder {name} in {Path.cwd()} either)" if kind == "hf" and not Path(name).exists() else ""
        raise WorkloadError(f"{package} can't make {name!r}: {described(error)}{here}") from error
    if weights not in (None, "none"):
        _load(model, Path(str(weights)))
    return model.eval()


def _require_reachable(name: str) -> None:
    """Fail at once where a name is no folder and was never downloaded, and the hub can't be reached: it would take half a minute.

    Raises:
        UsageError: that is so. Behind a proxy nothing is asked.
    """
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError:  # a transformers of another kind
        return
    offline = constants.HF_HUB_OFFLINE
    cached = Path(name).exists() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    if cached or offline or urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), HUB_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(
            f"there is no folder {name} in {Path.cwd()}, and {address.hostname} can't be asked for a model of that name: {error}"
        ) from error


def _load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"there is no file {path} (weights=..., looked in {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        model.load_state_dict(state)
    except Exception as error:  # a pickle, another model's weights, a broken file
        raise WorkloadError(f"{path} does not hold the weights of {type(model).__name__}: {described(error)}") from error


def inputs_of(model: nn.Module) -> list[str]:
    """Names of the arguments of its forward, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in inspect.signature(model.forward).parameters.items() if p.kind in kinds]


def load(kind: str, name: str, arguments: Mapping[str, Any], data_of: DataOf | None) -> Workload:
    """A workload of a library's model.

    Args:
        arguments: ``batch`` (examples of the batch whose latency counts; default 1), ``metric``, ``weights`` (see `model_of`).
        data_of: names of the forward's arguments -> (fields of `Workload`, names of the inputs in their order, none: as they
            come); None: no data were named.

    Raises:
        UsageError, WorkloadError: as `model_of`; or there are no data.
    """
    if kind == "hf" and "text" in arguments:
        return language.load(name, partial(model_of, kind), arguments)
    if faults := [f"{key} (known: {', '.join(ARGUMENTS)})" for key in arguments if key not in ARGUMENTS]:
        raise UsageError(f"{kind}:{name} takes no argument", faults)
    if data_of is None:
        raise UsageError(
            f"{kind}:{name} comes without data: give --data file.npz (an array for each input, and targets) or --data "
            "file.py:function that returns a dict of Workload fields (validation, calibration, test, train, metric, loss, "
            "example_inputs)" + ("; a language model takes --text file.txt" if kind == "hf" else "")
        )
    model = model_of(kind, name, None if "weights" not in arguments else str(arguments["weights"]))
    signature = inputs_of(model)
    given, names = data_of(signature)
    fields = dict(given)
    if list(names) != signature[: len(names)]:
        model = ByName(model, names)
    if "metric" in arguments:
        fields["metric"] = str(arguments["metric"])
    if "validation" not in fields:
        raise UsageError(f"the data of {kind}:{name} have no validation split")
    fields.setdefault("calibration", fields["validation"])
    allowed = {"calibration", "validation", "test", "train", "metric", "loss", "example_inputs"}
    if unknown := sorted(set(fields) - allowed):
        raise UsageError(f"the data of {kind}:{name} have {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")
    batch = arguments.get("batch", 1)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"batch must be a whole number of examples, at least 1, got {batch!r}")
    example = fields.pop("example_inputs", None)
    if example is None:
        example = _first(fields["validation"], batch)
    example = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    fields.setdefault("metric", "agreement" if _unlabelled(fields["validation"]) else "top1")
    return Workload(name=name.rstrip("/").rpartition("/")[2], model=model, example_inputs=example, **fields)


def _first(loader: Any, count: int) -> tuple[torch.Tensor, ...]:
    for inputs, _ in loader:
        return tuple(x[:count] for x in ((inputs,) if isinstance(inputs, torch.Tensor) else inputs))
    raise WorkloadError("the validation data is empty: it must yield at least one (inputs, targets) batch")


def _unlabelled(loader: Any) -> bool:
    return next((targets is None for _, targets in loader), True)
