"""Recurrent layers: the gates of a hidden unit go together."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.dims import ONE, Concat, Dim, Product
from hwprune.structure.scope import Scope, Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten


def hidden_units(
    call: Scope, x: Dim, weights: tuple[Value, Value], biases: list[Value], gates: int, *, tag: bool = True
) -> tuple[Dim, bool]:
    """(the hidden units of one layer in one direction, whether a unit that a mask removes computes zero from a state of zero).

    ``weights`` are (gates * hidden, in) and (gates * hidden, hidden); ``biases`` are (gates * hidden,) each.

    With weights and bias of zero every gate opens halfway onto tanh(0) = 0 or relu(0) = 0, so the state stays what it was.
    """
    first, second = weights
    hidden = call.space.leaf(second[1].size)
    gate = call.opaque(gates, "the gates of a unit") if gates > 1 else ONE
    rows = call.space.resolve(Product((gate, hidden)))
    for tensor in (first, second, *biases):
        call.unify(tensor[0], rows)
    call.unify(second[1], hidden)
    call.contract(Value((x,), (False,)), 0, first, 1)
    if tag:
        call.space.tag(first[0], "linear_out")
        call.space.tag(first[1], "linear_in")
    return hidden, all(tensor.zeros[0] for tensor in (first, second, *biases))


def start_from(call: Scope, states: list[Value], batch: Dim, hidden: Dim, *, zero: bool) -> bool:
    """Unify the initial states (directions, batch, hidden) with what they meet; is a removed unit zero at every step?"""
    for state in states:
        call.freeze(state[0], "layers and directions are counted")
        if state[1].size > 1:
            call.unify(state[1], batch)
        call.unify(state[2], hidden)
        zero = zero and state.zeros[2]
    if not zero:
        call.inexact(hidden, "its state does not start from zero")
    return zero


def _layer(
    call: Call, x: Value, states: list[Value], tensors: list[Value], gates: int, biases: bool, directions: int, batch_first: bool
) -> list[Value]:
    each = 4 if biases else 2
    if len(tensors) != each * directions:
        raise ValueError("more than one layer, or a projection")
    lead = (x[0], x[1])
    zero, hidden = True, None
    for number in range(directions):
        first, second, *rest = tensors[number * each : (number + 1) * each]
        units, gone = hidden_units(call, x[2], (first, second), rest, gates)
        zero = zero and gone
        if hidden is not None:
            call.unify(hidden, units)  # one tensor holds the states of both directions
        hidden = units
        call.macs(*lead, *first.dims)
        call.macs(*lead, *second.dims)
    assert hidden is not None
    zero = start_from(call, states, x[0 if batch_first else 1], hidden, zero=zero)
    for dim in (x[1],) if batch_first else (x[0],):
        call.freeze(dim, "is walked along")
    out = call.space.resolve(Concat((hidden,) * directions))
    last = Value((call.space.leaf(directions), x[0 if batch_first else 1], hidden), (False, False, zero))
    call.freeze(last[0], "layers and directions are counted")
    return [Value((*lead, out), (False, False, zero)), *[last] * len(states)]


GATES = {aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}


@rule(*GATES)
def recurrent(
    call: Call,
    x: Value,
    states: Value | list[Value],
    tensors: list[Value],
    biases: bool,
    _layers: int,
    _dropout: Any,
    _train: Any,
    both: bool,
    batch_first: bool,
) -> list[Value]:
    given = states if isinstance(states, list) else [states]
    return _layer(call, x, given, tensors, GATES[call.node.target], biases, 2 if both else 1, batch_first)  # type: ignore[index]
