"""Recurrent layers: the gates of a hidden unit, in both directions, go together."""

from __future__ import annotations

from hwprune.structure.onnx.rules.table import OnnxCall, rule
from hwprune.structure.scope import Value
from hwprune.structure.torch.rules.recurrent import hidden_units, start_from

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STAYS = frozenset(("Tanh", "Relu", "LeakyRelu", "Elu", "Softsign", "ThresholdedRelu", "ScaledTanh", "Affine"))
"""Activations of the new state that are zero at zero; ``Affine`` where it adds nothing."""


@rule("LSTM", "GRU", "RNN")
def recurrent(call: OnnxCall) -> list[Value]:
    """W (directions, gates * hidden, in), R (directions, gates * hidden, hidden), B (directions, 2 * gates * hidden)."""
    x, weights, recurrence, biases = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    gates, directions = GATES[call.node.op_type], weights[0].size
    batch_first = bool(call.options.get("layout", 0))
    first = Value(weights.dims[1:], weights.zeros[1:], weights.parameter)
    second = Value(recurrence.dims[1:], recurrence.zeros[1:], recurrence.parameter)
    halves = []
    if biases is not None:
        halves = [Value((half,), biases.zeros[1:]) for half in call.parts(biases[1], [biases[1].size // 2] * 2)]
    hidden, zero = hidden_units(call, x[2], (first, second), halves, gates)
    for tensor in (weights, recurrence, *([biases] if biases is not None else [])):
        call.freeze(tensor[0], "directions are counted")
    call.freeze(x[1] if batch_first else x[0], "is walked along")
    batch = x[0 if batch_first else 1]
    lengths, peepholes = call.optional(4), call.optional(7)
    if lengths is not None:
        call.unify(lengths[0], batch)
    if peepholes is not None:
        call.freeze(peepholes[0], "directions are counted")
        for part in call.parts(peepholes[1], [hidden.size] * 3):
            call.unify(part, hidden)
    states = [state for state in (call.optional(5), call.optional(6)) if state is not None]
    if batch_first:
        order = (1, 0, 2)
        states = [Value(tuple(s[i] for i in order), tuple(s.zeros[i] for i in order)) for s in states]
    names = [name.decode() if isinstance(name, bytes) else name for name in call.options.get("activations", [])]
    zero = zero and all(name in STAYS for name in names[1 if gates > 1 else 0 :]) and "Affine" not in names
    zero = start_from(call, states, batch, hidden, zero=zero)
    call.resize_attribute("hidden_size", lambda kept: kept(hidden))
    way = call.opaque(directions, "directions are counted")
    steps = x[1] if batch_first else x[0]
    out = (batch, steps, way, hidden) if batch_first else (steps, way, batch, hidden)
    last = (batch, way, hidden) if batch_first else (way, batch, hidden)
    results = [Value(out, (False, False, False, zero)), *[Value(last, (False, False, zero))] * 2]
    return [result for result, name in zip(results, call.node.output, strict=False) if name]
