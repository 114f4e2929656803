"""Weights of a GGUF file, or under a file's own names, as a Hugging Face folder with the names that the class has in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import UsageError, WorkloadError, described


def unpacked(folder: Path, file: str | None, out: Path) -> Path:
    """The model and the tokenizer, written anew; returns the new folder.

    The whole model is in memory meanwhile. A folder that is there already is taken as it is.

    Args:
        file: a GGUF file in the folder, whose weights get 32 bits; None: the folder's own weights in their own type, under the
            names that the class has for them in memory.

    Raises:
        UsageError: there is no such file, or a library is missing.
        WorkloadError: transformers can't read it.
    """
    if (out / "config.json").is_file():
        return out
    given: dict[str, Any] = {}
    if file is not None:
        if not (folder / file).is_file():
            raise UsageError(f"there is no file {folder / file} (--gguf)")
        missing = [name for name in ("transformers", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"--gguf needs {', '.join(missing)}: pip install {' '.join(missing)}")
        given = {"gguf_file": file}
    import transformers

    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32 if file is not None else "auto", **given
        )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), **given)
    except Exception as error:  # the library raises what it meets
        raise WorkloadError(f"transformers can't read {folder / (file or '')}: {described(error)}") from error
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    _save(loaded, partial)
    tokenizer.save_pretrained(str(partial))
    partial.rename(out)
    return out


def _save(model: Any, out: Path) -> None:
    """Configuration and weights, without a second copy of them in memory; ``save_pretrained`` refuses what came quantised."""
    from safetensors.torch import save_file

    facts = model.config.to_dict()
    facts.pop("quantization_config", None)  # what is written is not quantised any more
    config = type(model.config)(**facts)
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(out))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(str(out))
    state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied tensors are written once, as transformers does
            seen.add(tensor.data_ptr())
            state[name] = tensor.contiguous()
    save_file(state, str(out / "model.safetensors"), metadata={"format": "pt"})
