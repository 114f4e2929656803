"""ONNX's recurrent layers, by PyTorch's."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.onnx_files.operators.table import Node, Tensor, operator

# Where PyTorch's gates lie in ONNX's order (input, output, forget, cell; update, reset, hidden).
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _plain(node: Node, directions: int) -> None:
    """Raise ValueError for what PyTorch's layers don't have."""
    given = [name.decode() if isinstance(name, bytes) else name for name in node.get("activations", [])]
    if given and given != USUAL[node.kind] * directions and not (node.kind == "RNN" and given == ["Relu"] * directions):
        raise ValueError(f"{node.kind} with the activations {', '.join(given)}")
    if node.options.get("clip") or node.get("input_forget", 0):
        raise ValueError(f"{node.kind} with clip or input_forget")
    if node.optional(4) is not None or node.optional(7) is not None:
        raise ValueError(f"{node.kind} with sequence_lens or peepholes")


def _reordered(rows: Tensor, kind: str) -> Tensor:
    """(gates * hidden, ...) in PyTorch's order."""
    order = GATES[kind]
    parts = rows.chunk(len(order), 0)
    return torch.cat([parts[place] for place in order]) if len(order) > 1 else rows


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> Any:
    """(steps, directions, batch, hidden), then the last states (directions, batch, hidden)."""
    x, weights, recurrence, biases = node.tensor(0), node.tensor(1), node.tensor(2), node.optional(3)
    directions, hidden = recurrence.shape[0], recurrence.shape[2]
    _plain(node, directions)
    way, batch_first = node.get("direction", "forward"), bool(node.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
    starts = [
        _start(node, position, x, directions, hidden, batch_first=batch_first)
        for position in ((5, 6) if node.kind == "LSTM" else (5,))
    ]
    tensors: list[Tensor] = []
    for number in range(directions):
        tensors += [_reordered(weights[number], node.kind), _reordered(recurrence[number], node.kind)]
        if biases is not None:
            tensors += [_reordered(half, node.kind) for half in biases[number].chunk(2)]
    if node.kind == "GRU" and not node.get("linear_before_reset", 0):
        return _shaped(
            node,
            *_reset_first(x, starts[0], tensors, way, biases=biases is not None),
            directions,
            hidden,
            batch_first=batch_first,
        )
    backwards = way == "reverse"
    arguments = (tensors, biases is not None, 1, 0.0, False, directions == 2, False)
    given = x.flip(0) if backwards else x
    if node.kind == "LSTM":
        out, *states = torch.lstm(given, starts, *arguments)
    else:
        relu = node.kind == "RNN" and "Relu" in str(node.get("activations", ""))
        function: Any = torch.gru if node.kind == "GRU" else torch.rnn_relu if relu else torch.rnn_tanh
        out, *states = function(given, starts[0], *arguments)
    return _shaped(node, out.flip(0) if backwards else out, states, directions, hidden, batch_first=batch_first)


def _start(node: Node, position: int, x: Tensor, directions: int, hidden: Any, *, batch_first: bool) -> Tensor:
    given = node.optional(position)
    if given is None:
        return torch.zeros(directions, x.shape[1], hidden, dtype=x.dtype, device=x.device)
    return given.transpose(0, 1) if batch_first else given


def _shaped(node: Node, out: Tensor, states: list[Tensor], directions: int, hidden: Any, *, batch_first: bool) -> Any:
    steps, batch = out.shape[:2]
    by_direction = out.reshape(steps, batch, directions, hidden).transpose(1, 2) if directions > 1 else out.unsqueeze(1)
    if batch_first:
        by_direction, states = by_direction.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in states]
    return (by_direction, *states)[: max(node.outputs, 1)] if node.outputs > 1 else by_direction


def _reset_first(x: Tensor, start: Tensor, tensors: list[Tensor], way: str, *, biases: bool) -> tuple[Tensor, list[Tensor]]:
    """A GRU that resets the state before it multiplies it, as Keras writes it; step by step."""
    each = 4 if biases else 2
    outs, ends = [], []
    for number in range(len(tensors) // each):
        first, second, *rest = tensors[number * each : (number + 1) * each]
        one, two = rest if biases else (None, None)
        backwards = way == "reverse" or number == 1
        state = start[number]
        gates = torch.nn.functional.linear(x, first, one)
        steps = []
        for step in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
            reset_in, update_in, new_in = gates[step].chunk(3, -1)
            weights = second.chunk(3, 0)
            offsets = two.chunk(3, 0) if two is not None else (None,) * 3
            reset = torch.sigmoid(reset_in + torch.nn.functional.linear(state, weights[0], offsets[0]))
            update = torch.sigmoid(update_in + torch.nn.functional.linear(state, weights[1], offsets[1]))
            new = torch.tanh(new_in + torch.nn.functional.linear(reset * state, weights[2], offsets[2]))
            state = (1 - update) * new + update * state
            steps.append(state)
        outs.append(torch.stack(steps[::-1] if backwards else steps))
        ends.append(state)
    return torch.cat(outs, 2), [torch.stack(ends)]
