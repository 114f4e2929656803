"""Models with a cache in OpenVINO, whose cache is a state of the model, as its own GenAI library and Optimum run them.

With the cache as inputs and outputs, a model that is compiled for the shapes of one step is faster than any program that
generates text can be: there every step has another length (docs/figures/language.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Runner, named

PAST, PRESENT = "past_key_values", "present"
STEPS = 16
"""Single tokens after which the state is set back to where it was: half of them before the length that is asked for."""


def state_pairs(model: Any) -> dict[str, str]:
    """Input -> output of each tensor that is kept from step to step, by Optimum's names; empty: nothing is."""
    outputs = {name for item in model.outputs for name in item.get_names()}
    names = [item.get_any_name() for item in model.inputs]
    pairs = {name: name.replace(PAST, PRESENT, 1) for name in names if name.startswith(f"{PAST}.")}
    return pairs if all(name in outputs for name in pairs.values()) else {}


def with_states(model: Any, pairs: dict[str, str], batch: int) -> Any:
    """The model with its cache inside; the number of tokens is free."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    made = model.clone()
    shapes = {}
    for place, item in enumerate(made.inputs):
        sizes = [dim.get_length() if dim.is_static else -1 for dim in item.partial_shape]
        shapes[place] = openvino.PartialShape([batch, *sizes[1:]])
    made.reshape(shapes)
    apply_make_stateful_transformation(made, pairs)
    return made


@final
class StatefulRunner(Runner):
    """Takes and gives what the file with the cache as inputs and outputs does.

    Args:
        compile_model: (model) -> compiled.
    """

    def __init__(self, model: Any, pairs: dict[str, str], compile_model: Callable[[Any], Any]) -> None:
        self._model, self._pairs, self._compile = model, pairs, compile_model
        self._names = [item.get_any_name() for item in model.inputs]
        self._outputs = [item.get_any_name() for item in model.outputs]
        self._compiled: dict[int, Any] = {}

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        request, arrays = self._request(inputs)
        self._set(request, arrays)
        result = request.infer({name: array for name, array in arrays.items() if name not in self._pairs})
        kept = dict(zip(self._pairs.values(), self._states(request), strict=True))
        plain = [item.get_any_name() for item in request.model_outputs]
        found = {name: np.array(result[place]) for place, name in enumerate(plain)}
        return [found[name] if name in found else np.array(kept[name].state.data) for name in self._outputs]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        import openvino

        request, arrays = self._request(inputs)
        new = {name: openvino.Tensor(array) for name, array in arrays.items() if name not in self._pairs}
        for name, tensor in new.items():
            request.set_tensor(name, tensor)
        tokens = max((array.shape[1] for name, array in arrays.items() if name in new and array.ndim > 1), default=1)
        past = next(iter(arrays[name] for name in self._pairs)).shape[2]
        steps = min(STEPS, 2 * past + 1) if tokens == 1 else 1
        start = {name: array[:, :, : past - steps // 2] if name in self._pairs else array for name, array in arrays.items()}
        done = steps

        def step() -> None:
            nonlocal done
            if done == steps:
                self._set(request, start)
                done = 0
            request.infer()
            done += 1

        step()
        return step

    def _set(self, request: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        import openvino

        request.reset_state()
        for name, state in zip(self._pairs, self._states(request), strict=True):
            if arrays[name].shape[2]:
                state.state = openvino.Tensor(np.ascontiguousarray(arrays[name]))

    def _states(self, request: Any) -> list[Any]:
        """In the order of the pairs; OpenVINO names a state by its input and output."""
        states = request.query_state()
        found = []
        for past, present in self._pairs.items():
            (one,) = [state for state in states if state.name in (past + present, past, present)]
            found.append(one)
        return found

    def _request(self, inputs: Arrays) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
        arrays = {name: np.asarray(array, order="C") for name, array in named(self._names, inputs).items()}
        batch = next(iter(arrays.values())).shape[0]
        if batch not in self._compiled:
            self._compiled[batch] = self._compile(with_states(self._model, self._pairs, batch))
        return self._compiled[batch].create_infer_request(), arrays
