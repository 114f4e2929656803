"""Weights of a GGUF file as a Hugging Face folder in 32 bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import UsageError, WorkloadError, described


def unpacked(folder: Path, file: str, out: Path) -> Path:
    """The model and the tokenizer of a GGUF file, written by ``save_pretrained``; returns the new folder.

    The whole model is in memory meanwhile. A folder that is there already is taken as it is.

    Raises:
        UsageError: there is no such file, or a library is missing.
        WorkloadError: transformers can't read it.
    """
    if (out / "config.json").is_file():
        return out
    if not (folder / file).is_file():
        raise UsageError(f"there is no file {folder / file} (--gguf)")
    missing = [name for name in ("transformers", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--gguf needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import transformers

    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=file, dtype=torch.float32)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=file)
        facts = loaded.config.to_dict()
        facts.pop("quantization_config", None)  # what is written is not quantised any more
        model = type(loaded)(type(loaded.config)(**facts)).float()
        model.load_state_dict(loaded.state_dict())
    except Exception as error:  # the library raises what it meets
        raise WorkloadError(f"transformers can't read {folder / file}: {described(error)}") from error
    partial = out.with_name(f"{out.name}.partial")
    model.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    partial.rename(out)
    return out
