"""Borders between the parts of a transformer: where one tensor of tokens holds all that the rest reads, so that tokens can go.

They are found on the graph alone. After each attention the first place counts at which a single tensor that weights have made is
still read; what else crosses (an attention mask) was made of inputs alone. Tokens are dropped there as in EViT (Liang et al.
2022) or merged as in ToMe (Bolya et al. 2023): both do so between the attention and the layers behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwprune.structure.branches import Dag
from hwprune.structure.dims import ONE, Concat, Dim, Space
from hwprune.structure.scope import Value

TOKEN = "token"  # noqa: S105 - no password
"""The form that drops tokens: those of least attention."""
MERGE = "merge"
"""The form that merges tokens: those most alike, into their mean."""
FORMS = (TOKEN, MERGE)
SHORTEST = 1e-6
"""Length from which a token has a direction, where tokens are merged."""
FEWEST = 3
"""Tokens that there are at least where some can go."""


@dataclass(frozen=True, slots=True)
class Border:
    """A place where tokens can be made fewer.

    Attributes:
        main: node of the tensor (batch, tokens, features).
        others: nodes that cross beside it and hold tokens -> their dims that do.
        attention: node of the attention before it.
        before: weights that are read before it.
        near: those of them that are read behind the attention.
        last: number of the last node before it, in the graph's order.
        last_name: that node.
        tokens: how many there are in the whole model.
        fixed: how many of them, from the first one, are picked by number and stay (a class token).
    """

    main: str
    others: tuple[tuple[str, tuple[int, ...]], ...]
    attention: str
    before: frozenset[str]
    last: int
    last_name: str
    tokens: int
    fixed: int
    near: frozenset[str] = field(default=frozenset())

    @property
    def free(self) -> int:
        """Tokens that may go."""
        return self.tokens - self.fixed

    def with_fixed(self, fixed: int) -> Border:
        return replace(self, fixed=max(self.fixed, fixed))


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where one tensor crosses a border in one form.

    Attributes:
        border: the border's main node.
        form: ``token`` or ``merge``.
        dims: positions of the tensor's dims that are tokens.
        size, fixed: tokens of the whole model, and how many from the first one stay.
        main: is it the border's own tensor?
        rank: of the tensor.
    """

    border: str
    form: str
    dims: tuple[int, ...]
    size: int
    fixed: int
    main: bool
    rank: int

    def behind(self, value: Value, known: dict[tuple[str, str], Dim], space: Space) -> Value:
        """The tensor behind the border: its tokens are others than before."""
        key = (self.border, self.form)
        if key not in known:
            free = space.leaf(self.size - self.fixed)
            known[key] = space.resolve(Concat((*(ONE for _ in range(self.fixed)), free))) if self.fixed else free
        dims = list(value.dims)
        for place in self.dims:
            dims[place] = known[key]
        return Value(tuple(dims), (False,) * len(dims))


@dataclass(frozen=True, slots=True)
class TokenAxis:
    """The tokens at a border, in one form: what a recipe decides on.

    Attributes:
        name: ``NODE:token`` or ``NODE:merge``.
        form: ``token`` or ``merge``.
        size: tokens that may go.
        attention: node of the attention before the border.
        place: number of the border, from 0.
        label: of the block: the module that the weights just before the border are in.
    """

    name: str
    form: str
    size: int
    attention: str
    place: int
    label: str


@dataclass(frozen=True, slots=True)
class Reduction:
    """How many tokens go at one border.

    Attributes:
        form: ``token`` or ``merge``.
        fixed: tokens in front that stay.
        arriving, left: free tokens before and behind.
        masked: does a mask go with the tokens, so that some may be padding?
    """

    form: str
    fixed: int
    arriving: int
    left: int
    masked: bool


def reductions(chain: Sequence[TokenAxis], borders: Mapping[int, Border], kept: Mapping[str, int]) -> dict[str, Reduction]:
    """Axis -> what it does to the tokens, for those that take any away.

    Args:
        kept: axis -> how many of its `size` stay.
    """
    now = counts(chain, kept)
    found: dict[str, Reduction] = {}
    arriving: int | None = None
    for axis in chain:
        before = axis.size if arriving is None else arriving
        if now.get(axis.name, before) < before:
            border = borders[axis.place]
            found[axis.name] = Reduction(axis.form, border.fixed, before, now[axis.name], bool(border.others))
        arriving = now.get(axis.name, arriving)
    return found


def left(form: str, arriving: int, kept: float) -> int:
    """Tokens behind a reduction, of so many free ones that arrive, where a fraction ``kept`` stays; at least one does.

    Merging joins every second token with one of the others: at most half can go.
    """
    wanted = max(1, round(arriving * kept))
    return max(wanted, arriving // 2) if form == MERGE else wanted


def counts(axes: Sequence[TokenAxis], kept: Mapping[str, int]) -> dict[str, int]:
    """Free tokens behind each reduction, in the model's order, from the first that takes any on.

    Args:
        kept: axis -> how many of its `size` stay: the fraction that stays of those that arrive.
    """
    now: int | None = None
    found: dict[str, int] = {}
    for axis in axes:
        if axis.name in kept and kept[axis.name] < axis.size:
            now = left(axis.form, axis.size if now is None else now, kept[axis.name] / axis.size)
        if now is not None:
            found[axis.name] = now
    return found


def find(
    dag: Dag, inputs: Collection[str], values: Mapping[str, Value | None], attentions: Mapping[str, Value], space: Space
) -> list[Border]:
    """The borders of a graph, in its order.

    Args:
        inputs: nodes of the model's inputs.
        values: node -> dims, for every node that is one tensor; None where they are not known. Nodes that are no tensors (sizes,
            tuples) are left out.
        attentions: node of an attention -> the dims of its weights, (batch, heads, queries, keys).
        space: of the dims.
    """
    order = list(dag.nodes)
    constant = set(dag.tensors)
    # What a constant node (a transposed weight) was made of is read where the node is.
    made_of: dict[str, frozenset[str]] = {node: frozenset({name}) for node, name in dag.tensors.items()}
    weighted: set[str] = set()
    # What only goes out crosses nothing: it keeps the tokens that it has.
    readers: dict[str, int] = {}
    for place, name in enumerate(order):
        for source in dag.nodes[name] if name != dag.end else ():
            readers[source] = max(place, readers.get(source, -1))
    live: set[str] = set()
    read: set[str] = set()
    attention: str | None = None
    known: frozenset[str] = frozenset()
    found: list[Border] = []
    for place, name in enumerate(order):
        sources = dag.nodes[name]
        mine = frozenset().union(*(made_of.get(source, frozenset()) for source in sources))
        if name not in constant and name not in inputs and all(source in constant for source in sources):
            constant.add(name)
            made_of[name] = mine
        elif name not in constant:
            read |= mine
        if any(source in weighted for source in sources) or (mine & dag.weights and name not in constant):
            weighted.add(name)
        live = {node for node in (*live, name) if node not in constant and readers.get(node, -1) > place}
        if name in attentions:
            attention, known = name, frozenset(read)
        if attention is None or name in attentions:
            continue
        main = [node for node in live if node in weighted]
        if len(main) != 1 or any(border.main == main[0] for border in found):
            continue
        crossing = {node: values[node] for node in sorted(live) if node in values}  # the others are sizes, not tensors
        if (crossed := _crossed(main[0], crossing, attentions[attention], space)) is not None:
            others, tokens = crossed
            before = frozenset(read & dag.weights)
            found.append(Border(main[0], others, attention, before, place, name, tokens.size, leading(tokens), before - known))
            attention = None
    return found


def _crossed(
    main: str, crossing: Mapping[str, Value | None], scores: Value, space: Space
) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], Dim] | None:
    """(what crosses beside the main tensor -> its dims that are tokens, the tokens); None if it is no border of tokens."""
    x = crossing.get(main)
    if x is None or len(x) != 3:
        return None
    batch, tokens = space.resolve(x[0]), space.resolve(x[1])
    same = [space.resolve(scores[place]) for place in (0, 2, 3)] == [batch, tokens, tokens]
    if not same or tokens.size < FEWEST or tokens == batch:
        return None
    parts = set(space.leaves(tokens))
    others = []
    for name, value in crossing.items():
        if name == main:
            continue
        if value is None:
            return None
        dims = tuple(place for place, dim in enumerate(value.dims) if space.resolve(dim) == tokens)
        mixed = any(parts & set(space.leaves(dim)) for place, dim in enumerate(value.dims) if place not in dims)
        if mixed or (dims and (0 in dims or space.resolve(value[0]) != batch)):
            return None
        if dims:
            others.append((name, dims))
    return tuple(others), tokens


def leading(dim: Dim) -> int:
    """Parts of size 1 in front of a dim: class tokens that were laid before the others."""
    count = 0
    for part in dim.parts if isinstance(dim, Concat) else ():
        if part != ONE:
            break
        count += 1
    return count
