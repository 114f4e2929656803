"""llama.cpp on the CPU, through the xllamacpp package: language models in GGUF files.

Inputs are tokens (1, n), and how many of them the cache holds when the clock starts: none, which times a prompt, or all but the
last, which times a single token. The output is the log-probability of each word of the vocabulary as the next token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import WALL, Arrays, Runner, Runtime, RuntimeSettings, library_version, not_installed

CONTEXT = 2048
"""Tokens that the cache has room for, where the profile says nothing of ``context``."""


@final
class LlamaCppRunner(Runner):
    """A model behind llama.cpp's own server, which listens on loopback and works in threads of its own."""

    def __init__(self, path: Path, settings: RuntimeSettings) -> None:
        import xllamacpp

        asked = xllamacpp.CommonParams()
        asked.model.path = str(path)
        asked.n_ctx = int(settings.options.get("context", CONTEXT))
        asked.n_parallel = 1
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = settings.threads
        asked.warmup = False
        asked.verbosity = -1
        self._server = xllamacpp.Server(asked)

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        tokens, _ = _asked(inputs)
        made = self._complete(tokens, n_predict=1, n_probs=2**30, cache_prompt=False)
        said = made["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        out = np.full((1, 1 + max(one["id"] for one in said)), -np.inf, np.float32)
        out[0, [one["id"] for one in said]] = [one["logprob"] for one in said]
        return [out]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        tokens, past = _asked(inputs)
        given = {"n_predict": 0, "cache_prompt": past > 0}
        self._complete(tokens, **given)  # fills the cache
        ran = self._complete(tokens, **given)["timings"]["prompt_n"]
        if ran != len(tokens) - past:
            raise ValueError(f"llama.cpp ran {ran} tokens, not {len(tokens) - past}: this model's cache can't be gone on with")
        return lambda: self._complete(tokens, **given)

    def _complete(self, tokens: list[int], **given: Any) -> dict[str, Any]:
        """Raises ValueError with what llama.cpp says."""
        made: dict[str, Any] = self._server.handle_completions({"prompt": tokens, "temperature": 0, **given})
        if "error" in made:
            raise ValueError(f"llama.cpp: {made['error'].get('message', made['error'])}")
        return made


@final
class LlamaCpp(Runtime):
    """No target of a search: its candidates are ONNX files. ``hwprune apply ... --format gguf`` uses it.

    Weights have the types of the file, whatever the precision. The one option is ``context``, the tokens that the cache has room
    for.
    """

    name = "llama.cpp"
    description = "llama.cpp on CPUs: language models in GGUF files"
    file = "model.gguf"
    options = frozenset({"context"})

    def missing(self) -> str | None:
        return not_installed("xllamacpp", "llamacpp")

    def version(self) -> str:
        return library_version("xllamacpp")

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        return LlamaCppRunner(path, settings)

    def clock(self, settings: RuntimeSettings) -> str:
        return WALL


def _asked(inputs: Arrays) -> tuple[list[int], int]:
    """Tokens, and how many of them are in the cache. Raises ValueError."""
    if not inputs or inputs[0].ndim != 2 or len(inputs[0]) != 1 or inputs[0].dtype.kind not in "iu":
        raise ValueError("llama.cpp takes tokens (1, n), whole numbers, one text at a time")
    tokens = [int(token) for token in inputs[0][0]]
    past = int(inputs[1].reshape(-1)[0]) if len(inputs) > 1 else 0
    if past not in (0, len(tokens) - 1):
        raise ValueError(f"of {len(tokens)} tokens none, or all but the last, can be in the cache, not {past}")
    return tokens, past
