"""Linear layers and matrix products: contracted dims unify, batch dims unify."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from hwprune.structure.dims import Dim
from hwprune.structure.scope import Scope, Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten


def _tag_roles(call: Scope, x: Dim, weight: Value, out: int, inner: int) -> None:
    call.space.tag(weight[out], "linear_out")
    call.space.tag(weight[inner], "linear_in")


@rule(aten.linear.default)
def linear(call: Call, x: Value, weight: Value, bias: Value | None) -> Value:
    call.contract(x, -1, weight, 1)
    if bias is not None:
        call.unify(bias[0], weight[0])
    _tag_roles(call, x[-1], weight, 0, 1)
    call.macs(*x.dims[:-1], *weight.dims)
    # A bias is added at every position of the leading dims, so nothing stays zero there.
    leading = tuple(zero and bias is None for zero in x.zeros[:-1])
    out_zero = weight.zeros[0] and (bias is None or bias.zeros[0])
    return Value((*x.dims[:-1], weight[0]), (*leading, out_zero))


@rule(aten.addmm.default)
def addmm(call: Call, bias: Value, x: Value, weight: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    call.contract(x, 1, weight, 0)
    if len(bias):
        call.broadcast([Value((x[0], weight[1]), (False, False)), bias])
    if weight.parameter is not None:
        _tag_roles(call, x[1], weight, 1, 0)
    call.macs(*x.dims, weight[1])
    column = weight.zeros[1] and len(bias) > 0 and bias[-1].size != 1 and bias.zeros[-1]
    return Value((x[0], weight[1]), (False, column))


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(call: Scope, a: Value, b: Value) -> Value:
    """Batch dims broadcast; (..., n, k) x (..., k, m) contracts k. Vectors as in ``torch.matmul``."""
    k_of_b = -2 if len(b) > 1 else -1
    call.contract(a, -1, b, k_of_b)
    if b.parameter is not None and len(b) == 2:
        _tag_roles(call, a[-1], b, 1, 0)
    elif a.parameter is None and b.parameter is None and len(a) > 1 and len(b) > 1:
        call.space.tag(a[-1], "attention_inner")
        call.space.tag(b[-1], "attention_inner")
    batches = [Value(v.dims[:-2], v.zeros[:-2]) for v in (a, b) if len(v) > 2]
    batch = call.broadcast(batches) if batches else ()
    if a.parameter is None and b.parameter is None:
        for dim in batch:
            call.space.tag(dim, "attention_batch")
    elif b.parameter is not None and len(b) > 2:
        for dim in b.dims[:-2]:
            call.space.tag(dim, "expert")
        _tag_roles(call, a[-1], b, -1, -2)
    call.macs(*batch, *a.dims[-2:], *b.dims[-1:] if len(b) > 1 else ())
    zero_batch = tuple(any(-p <= len(v) and v.zeros[p] and v[p].size != 1 for v in batches) for p in range(-len(batch), 0))
    rows = ((a[-2],), (a.zeros[-2],)) if len(a) > 1 else ((), ())
    columns = ((b[-1],), (b.zeros[-1],)) if len(b) > 1 else ((), ())
    return Value((*batch, *rows[0], *columns[0]), (*zero_batch, *rows[1], *columns[1]))


@rule(aten.mv.default, aten.dot.default, aten.vdot.default)
def vector(call: Call, a: Value, b: Value) -> Value | tuple[Dim, ...]:
    return matmul(call, a, b)


@rule(aten.outer.default)
def outer(call: Call, a: Value, b: Value) -> Value:
    return Value((a[0], b[0]), (a.zeros[0], b.zeros[0]))


@rule(aten._cdist_forward.default, aten.cdist.default, aten._euclidean_dist.default)
def distances(call: Call, a: Value, b: Value, *_: Any) -> Value:
    """(..., n, d) and (..., m, d) -> (..., n, m): equal coordinates, as two zeros are, add nothing."""
    call.unify(a[-1], b[-1])
    if not (a.zeros[-1] and b.zeros[-1]):
        call.inexact(a[-1], "a distance runs over values that a mask does not make zero")
    batches = [Value(v.dims[:-2], v.zeros[:-2]) for v in (a, b) if len(v) > 2]
    batch = call.broadcast(batches) if batches else ()
    dims = (*batch, a[-2], b[-2])
    return Value(dims, (False,) * len(dims))


@rule(aten.bilinear.default)
def bilinear(call: Call, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """(..., i) x (..., j) x (o, i, j) -> (..., o)."""
    call.contract(a, -1, weight, 1)
    call.contract(b, -1, weight, 2)
    leading = call.broadcast([Value(operand.dims[:-1], operand.zeros[:-1]) for operand in (a, b)])
    if bias is not None:
        call.unify(bias[0], weight[0])
    out_zero = weight.zeros[0] and (bias is None or bias.zeros[0])
    return Value((*leading, weight[0]), (*(False for _ in leading), out_zero))


@rule(aten.baddbmm.default)
def baddbmm(call: Call, base: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    result = matmul(call, a, b)
    assert isinstance(result, Value)
    call.broadcast([result, base])
    return Value(result.dims, (False,) * len(result))


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """(the letters of each operand, those of the result), with ``...`` and an omitted result written out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        alone = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        right = ("..." if "." in left else "") + "".join(alone)
    spare = "".join(chr(0x391 + number) for number in range(8) if chr(0x391 + number) not in equation)
    most = 0
    for number, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        if "..." in term:
            count = rank - (len(term) - 3)
            most = max(most, count)
            terms[number] = term.replace("...", spare[len(spare) - count :])  # aligned from the right, as in broadcasting
    return terms, right.replace("...", spare[len(spare) - most :] if most else "")


@rule(aten.einsum.default)
def einsum(  # noqa: PLR0912 - one branch for each thing a letter may mean
    call: Scope, equation: str, operands: list[Value], path: Any = None
) -> Value | tuple[Dim, ...]:
    """Equal letters unify; a letter that is missing in the output is contracted; ``...`` stands for letters of its own."""
    terms, right = _letters(equation, [len(operand) for operand in operands])
    if any(len(set(t)) != len(t) for t in terms):
        for operand in operands:
            for dim in operand.dims:
                call.freeze(dim, f"equation {equation!r} is not supported")
        return tuple(call.opaque(size, "output of an unsupported equation") for size in call.sizes)
    where: dict[str, list[tuple[Value, int]]] = {}
    for term, operand in zip(terms, operands, strict=True):
        for position, letter in enumerate(term):
            where.setdefault(letter, []).append((operand, position))
    activations = all(operand.parameter is None for operand in operands)
    for letter, uses in where.items():
        real = [(v, i) for v, i in uses if v[i].size != 1]
        for (v, i), (w, j) in pairwise(real):
            call.unify(v[i], w[j])
        if letter not in right and real:
            if not any(v.zeros[i] for v, i in real):
                call.inexact(real[0][0][real[0][1]], "sums over values that a mask does not make zero")
            if activations:
                call.space.tag(real[0][0][real[0][1]], "attention_inner")
        elif activations and len(real) > 1:
            call.space.tag(real[0][0][real[0][1]], "attention_batch")
        elif letter in right and len(real) > 1 and any(v.parameter is not None and len(v) > 2 for v, _ in real):
            call.space.tag(real[0][0][real[0][1]], "expert")
        for value, position in real:
            if value.parameter is not None:
                call.space.tag(value[position], "linear_out" if letter in right else "linear_in")
    call.macs(*(next((v[i] for v, i in uses if v[i].size != 1), uses[0][0][uses[0][1]]) for uses in where.values()))
    dims, zeros = [], []
    for letter in right:
        value, position = next(((v, i) for v, i in where[letter] if v[i].size != 1), where[letter][0])
        dims.append(value[position])
        zeros.append(any(v.zeros[i] for v, i in where[letter] if v[i].size != 1))
    return Value(tuple(dims), tuple(zeros))
