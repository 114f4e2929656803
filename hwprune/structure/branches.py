"""Branches: what a sum adds to a skip connection and could go as a whole (residual blocks, attention or FFN sublayers).

They are found on the graph alone: in ``x + f(x)`` the side that was computed from the other one, in ``g(x) + f(x)`` the side with
more layers of its own. Dropping one replaces the sum by its other side; what nothing reads then goes too. This is depth pruning
as in ShortGPT (Men et al. 2024) and LaCo (Yang et al. 2024), without names of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Branch:
    """One side of a sum that may be dropped.

    Attributes:
        name: the sum's node.
        side: 0 or 1, the operand that goes; the sum becomes the other one.
        parameters: tensors that nothing reads any more, in graph order; at least one is a weight matrix or kernel.
    """

    name: str
    side: int
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dag:
    """The graph as names.

    Attributes:
        nodes: node -> what it reads, in graph order.
        outputs: what the model returns.
        tensors: node -> the parameter or buffer that it is.
        weights: those of the tensors that are matrices or kernels of a layer.
        sums: additions of two tensors of the same shape: node -> (first operand, second operand).
        data: nodes that hold floating-point activations, inputs included.
        writes: in-place operators: node -> the node whose storage it changes.
        end: the node that collects the outputs, where the graph has one.
    """

    nodes: Mapping[str, Sequence[str]]
    outputs: Sequence[str]
    tensors: Mapping[str, str]
    weights: frozenset[str]
    sums: Mapping[str, tuple[str, str]]
    data: frozenset[str]
    writes: Mapping[str, str]
    end: str | None = None

    def live(self, dropped: Mapping[str, int]) -> set[str]:
        """Nodes that are still needed when sums are replaced by the side that is not dropped."""
        needed: set[str] = set()
        self._reach(self.outputs, dropped, needed)
        grew = bool(self.writes)
        while grew:  # an in-place operator stays if what it changes is still there
            grew = False
            for node, storage in self.writes.items():
                if node not in needed and storage in needed and node not in dropped:
                    self._reach([node], dropped, needed)
                    grew = True
        return needed

    def _reach(self, start: Iterable[str], dropped: Mapping[str, int], needed: set[str]) -> None:
        stack = list(start)
        while stack:
            node = stack.pop()
            if node in needed:
                continue
            needed.add(node)
            if node in dropped:
                stack.append(self.sums[node][1 - dropped[node]])
            else:
                stack.extend(self.nodes.get(node, ()))

    def dead_tensors(self, dropped: Mapping[str, int]) -> set[str]:
        """Tensors that are read in the whole graph but no longer with these sides dropped."""
        before, after = self.live({}), self.live(dropped)
        return {self.tensors[n] for n in before if n in self.tensors} - {self.tensors[n] for n in after if n in self.tensors}


def find(dag: Dag) -> tuple[Branch, ...]:
    """Every branch, in graph order."""
    numbers = {name: position for position, name in enumerate(dag.nodes)}
    ancestors: dict[str, int] = {}
    for name, inputs in dag.nodes.items():
        bits = 1 << numbers[name]
        for source in inputs:
            bits |= ancestors.get(source, 0)
        ancestors[name] = bits
    data = sum(1 << numbers[name] for name in dag.data if name in numbers)
    whole = dag.live({})
    all_tensors = {dag.tensors[n] for n in whole if n in dag.tensors}
    order = {tensor: place for place, tensor in enumerate(dict.fromkeys(dag.tensors.values()))}
    branches = []
    for name, operands in dag.sums.items():
        if name not in whole or operands[0] == operands[1]:
            continue
        if not ancestors[operands[0]] & ancestors[operands[1]] & data:
            continue  # nothing that both sides come from: token and position embeddings, for example
        gone = []
        for side in (0, 1):
            live = dag.live({name: side})
            gone.append(all_tensors - {dag.tensors[n] for n in live if n in dag.tensors})
        dropped_side = _choose(operands, ancestors, numbers, [len(tensors & dag.weights) for tensors in gone])
        if dropped_side is not None:
            branches.append(Branch(name, dropped_side, tuple(sorted(gone[dropped_side], key=order.__getitem__))))
    return tuple(branches)


def _choose(
    operands: tuple[str, str], ancestors: Mapping[str, int], numbers: Mapping[str, int], layers: Sequence[int]
) -> int | None:
    """The side that may go, or None."""
    for side in (0, 1):
        mine, other = operands[side], operands[1 - side]
        if ancestors[mine] >> numbers[other] & 1:  # x + f(x)
            return side if layers[side] else None
    side = 0 if layers[0] > layers[1] else 1
    return side if layers[side] and layers[0] != layers[1] else None
