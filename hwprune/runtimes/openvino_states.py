"""Models with a cache in OpenVINO, whose cache is a state of the model, as its own GenAI library and Optimum run them.

With the cache as inputs and outputs, a model that is compiled for the shapes of one step is faster than any program that
generates text can be: there every step has another length (docs/figures/language.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Runner, named
from hwprune.runtimes.openvino_attention import BEAMS, MASK, POSITIONS, begin_empty, choose_beams, free_positions, fuse_attention

PAST, PRESENT = "past_key_values", "present"
STEPS = 16
"""Single tokens after which the state is set back to where it was: half of them before the length that is asked for."""

EXACT_CACHE = {"KV_CACHE_PRECISION": "f32"}
"""By itself OpenVINO keeps keys and values in 8 bits, which moves logits by a hundredth; perplexities are told without that."""


def state_pairs(model: Any) -> dict[str, str]:
    """Input -> output of each tensor that is kept from step to step, by Optimum's names; empty: nothing is."""
    outputs = {name for item in model.outputs for name in item.get_names()}
    names = [item.get_any_name() for item in model.inputs]
    pairs = {name: name.replace(PAST, PRESENT, 1) for name in names if name.startswith(f"{PAST}.")}
    return pairs if all(name in outputs for name in pairs.values()) else {}


def with_states(model: Any, pairs: dict[str, str], *, padded: bool = True) -> Any:
    """The model with its cache inside, for any number of texts and tokens.

    Inputs beside the model's own: `BEAMS` (texts,), the text of the last step that each goes on from, and, if ``padded`` and as
    far as there is use for them, `MASK` (texts, tokens and those before), 0 for padding, and `POSITIONS` (texts, tokens).
    """
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    made = model.clone()
    shapes = {place: list(item.partial_shape) for place, item in enumerate(made.inputs)}
    made.reshape({place: openvino.PartialShape([-1, *sizes[1:]]) for place, sizes in shapes.items() if sizes})
    if fuse_attention(made, masked=padded) and padded:
        free_positions(made)
    choose_beams(made, pairs)
    made.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(made, pairs)
    begin_empty(made)
    return made


def where_they_stand(model: Any, mask: np.ndarray[Any, Any], tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """What a model of `with_states` wants to know of the last tokens of texts, beside themselves.

    Args:
        mask: (texts, all tokens), 0 for padding.
    """
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -tokens:]
    known = {MASK: mask, POSITIONS: positions, BEAMS: np.arange(len(mask))}
    found = {}
    for item in model.inputs:
        for name in item.get_names() & known.keys():
            if len(item.partial_shape) == known[name].ndim:  # a user's own mask may be of another form
                found[name] = known[name].astype(item.element_type.to_dtype())
    return found


@final
class StatefulRunner(Runner):
    """Takes and gives what the file with the cache as inputs and outputs does.

    Args:
        compile_model: (model) -> compiled.
    """

    def __init__(self, model: Any, pairs: dict[str, str], compile_model: Callable[[Any], Any]) -> None:
        self._pairs = pairs
        self._names = [item.get_any_name() for item in model.inputs]
        self._outputs = [item.get_any_name() for item in model.outputs]
        self._compiled = compile_model(with_states(model, pairs))

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        request, given, cache = self._split(inputs)
        self._set(request, cache)
        result = request.infer(self._step(given, _length(cache)) | given)
        kept = dict(zip(self._pairs.values(), self._states(request), strict=True))
        plain = [item.get_any_name() for item in request.model_outputs]
        found = {name: np.array(result[place]) for place, name in enumerate(plain)}
        return [found[name] if name in found else np.array(kept[name].state.data) for name in self._outputs]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        import openvino

        request, given, cache = self._split(inputs)
        tokens, past = self._count(given)[1], _length(cache)
        steps = min(STEPS, 2 * past + 1) if tokens == 1 else 1
        first = past - steps // 2
        start = {name: array[:, :, :first] for name, array in cache.items()}
        # As a program that generates text does, each step gets a longer mask, and its own position.
        fed = [
            {name: openvino.Tensor(array) for name, array in (given | self._step(given, first + number)).items()}
            for number in range(steps)
        ]
        done = steps

        def step() -> None:
            nonlocal done
            if done == steps:
                self._set(request, start)
                done = 0
            for name, tensor in fed[done].items():
                request.set_tensor(name, tensor)
            request.infer()
            done += 1

        step()
        return step

    def _step(self, given: dict[str, np.ndarray[Any, Any]], past: int) -> dict[str, np.ndarray[Any, Any]]:
        batch, tokens = self._count(given)
        return where_they_stand(self._compiled, np.ones((batch, past + tokens), np.int64), tokens)

    def _count(self, given: dict[str, np.ndarray[Any, Any]]) -> tuple[int, int]:
        """Texts, and tokens of each: sizes of what is fed in as it is, in whatever order the model takes its inputs."""
        fed = [array for name, array in given.items() if name not in (MASK, POSITIONS, BEAMS) and array.ndim > 1]
        batch, tokens = (fed or [*given.values()])[0].shape[:2]
        return batch, tokens

    def _set(self, request: Any, cache: dict[str, np.ndarray[Any, Any]]) -> None:
        import openvino

        request.reset_state()
        for name, state in zip(self._pairs, self._states(request), strict=True):
            if cache[name].shape[2]:
                state.state = openvino.Tensor(np.ascontiguousarray(cache[name]))

    def _states(self, request: Any) -> list[Any]:
        """In the order of the pairs; OpenVINO names a state by its input and output."""
        states = request.query_state()
        found = []
        for past, present in self._pairs.items():
            (one,) = [state for state in states if state.name in (past + present, past, present)]
            found.append(one)
        return found

    def _split(self, inputs: Arrays) -> tuple[Any, dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
        """A request, what goes in as it is, and the cache."""
        arrays = {name: np.asarray(array, order="C") for name, array in named(self._names, inputs).items()}
        given = {name: array for name, array in arrays.items() if name not in self._pairs}
        return self._compiled.create_infer_request(), given, {name: arrays[name] for name in self._pairs}


def _length(cache: dict[str, np.ndarray[Any, Any]]) -> int:
    return int(next(iter(cache.values())).shape[2])
