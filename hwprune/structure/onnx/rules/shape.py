"""Operators that move, merge, split, join or pick without computing.

One file because the operators of one family stand together, each in a few lines.
"""

from __future__ import annotations

from onnx import numpy_helper

from hwprune.structure.dims import ONE, Concat, Dim, MismatchError, Product
from hwprune.structure.onnx.rules.table import OnnxCall, rule
from hwprune.structure.scope import Value
from hwprune.structure.torch.rules import index as picking
from hwprune.structure.torch.rules import scatter as writing
from hwprune.structure.torch.rules.join import join


@rule("Reshape")
def reshape(call: OnnxCall) -> Value:
    result = call.regroup(call.tensor(0), call.sizes)
    given = call.integers(1, "shape")
    if given is None:
        raise ValueError("a reshape without a shape")
    if call.options.get("allowzero", 0) and 0 in given:
        raise ValueError("a tensor without entries")
    for entry, dim, position in zip(given, result.dims, range(len(result)), strict=True):
        # 0 copies the size of the input's dim at the same place, which must then be the same dim.
        if entry == 0:
            call.unify(dim, call.tensor(0)[position])
    call.sizes_after(1, result.dims, given)
    return result


@rule("Flatten")
def flatten(call: OnnxCall) -> Value:
    return call.regroup(call.tensor(0), call.sizes)


@rule("Unsqueeze", "Squeeze")
def regroup(call: OnnxCall) -> Value:
    x = call.tensor(0)
    axes = call.integers(1, "axes")
    if call.node.op_type == "Squeeze":
        gone = {axis % len(x) for axis in axes} if axes else {p for p, dim in enumerate(x.dims) if dim.size == 1}
        if not axes:
            for dim in x.dims:  # a dim that a cut makes 1 would vanish too
                call.freeze(dim, "squeezed wherever the size is 1")
        stays = [position for position in range(len(x)) if position not in gone]
        return Value(tuple(x.dims[p] for p in stays), tuple(x.zeros[p] for p in stays))
    rank = len(x) + len(axes or [])
    new = {axis % rank for axis in axes or []}
    rest = iter(zip(x.dims, x.zeros, strict=True))
    pairs = [(ONE, False) if position in new else next(rest) for position in range(rank)]
    return Value(tuple(dim for dim, _ in pairs), tuple(zero for _, zero in pairs))


@rule("Transpose")
def transpose(call: OnnxCall) -> Value:
    x = call.tensor(0)
    order = call.options.get("perm") or list(reversed(range(len(x))))
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order), x.parameter)


@rule("Expand")
def expand(call: OnnxCall) -> Value:
    x = call.tensor(0)
    given = call.integers(1) or []
    new = len(call.sizes) - len(x)
    dims: list[Dim] = []
    for position, wanted in enumerate(call.sizes):
        old = x[position - new] if position >= new else ONE
        dims.append(old if old.size == wanted else call.space.leaf(wanted))
    nothing = call.known[0] is not None and not call.known[0].any()
    zeros = tuple(
        nothing or (position >= new and x.zeros[position - new] and x[position - new].size != 1) for position in range(len(dims))
    )
    lead = len(call.sizes) - len(given)
    if call.known[1] is None:
        raise ValueError("the shape is computed at run time")
    call.resize_input(1, lambda kept: [1 if entry == 1 else kept(dim) for entry, dim in zip(given, dims[lead:], strict=True)])
    return Value(tuple(dims), zeros)


@rule("Concat")
def concat(call: OnnxCall) -> Value:
    return join(call, [call.tensor(position) for position in range(len(call.node.input))], call.options["axis"])


@rule("Split")
def split(call: OnnxCall) -> list[Value]:
    x = call.tensor(0)
    axis = call.options.get("axis", 0) % len(x)
    parts = call.parts(x[axis], [shape[axis] for shape in call.outputs])
    if len(call.node.input) > 1 and call.node.input[1]:
        call.resize_input(1, lambda kept: [kept(part) for part in parts])
    elif "split" in call.options:
        call.resize_attribute("split", lambda kept: [kept(part) for part in parts])
    else:  # equal parts, which a cut need not leave equal
        call.resize_input(1, lambda kept: [kept(part) for part in parts])
    return [Value((*x.dims[:axis], part, *x.dims[axis + 1 :]), x.zeros) for part in parts]


@rule("Slice")
def slice_(call: OnnxCall) -> Value:
    x = call.tensor(0)
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4, "steps") or [1] * len(starts)
    dims = list(x.dims)
    cuts: list[tuple[int, Dim, Dim]] = []  # (entry, what lies before, what stays)
    for entry, (start, axis, step) in enumerate(zip(starts, axes, steps, strict=True)):
        position = axis % len(x)
        size, out = x[position].size, call.sizes[position]
        if out == size and step == 1:
            cuts.append((entry, call.space.resolve(Concat(())), x[position]))
            continue
        first = max(start + size, 0) if start < 0 else min(start, size)
        if step > 1 and out * step == size and first < step:
            try:
                dims[position], skipped = call.space.factor(x[position], [out, step])
                call.freeze(skipped, "is sliced with a step")
                continue
            except MismatchError as mismatch:
                call.freeze(x[position], str(mismatch))
        elif step != 1 or first + out > size:
            call.freeze(x[position], "is sliced with a step" if step != 1 else "is sliced by a computed bound")
        else:
            before, dims[position], _ = call.parts(x[position], [first, out, size - first - out])
            cuts.append((entry, before, dims[position]))
            continue
        dims[position] = call.opaque(out, "is sliced with a step")

    def after(bounds: list[int], kept_of: bool) -> object:
        def numbers(kept: object) -> list[int]:
            assert callable(kept)
            now = list(bounds)
            for entry, before, stays in cuts:
                position = axes[entry] % len(x)
                if kept(x[position]) != x[position].size:
                    now[entry] = kept(before) + (kept(stays) if kept_of else 0)
            for entry, axis in enumerate(axes):
                changed = kept(x[axis % len(x)])
                if steps[entry] > 1 and changed != x[axis % len(x)].size:
                    start = starts[entry]
                    now[entry] = changed if kept_of else start + x[axis % len(x)].size if start < 0 else start
            return now

        return numbers

    if len(call.node.input) > 1:
        call.resize_input(1, after(starts, kept_of=False))  # type: ignore[arg-type]
        call.resize_input(2, after(ends, kept_of=True))  # type: ignore[arg-type]
    else:
        call.resize_attribute("starts", after(starts, kept_of=False))  # type: ignore[arg-type]
        call.resize_attribute("ends", after(ends, kept_of=True))  # type: ignore[arg-type]
    return Value(tuple(dims), x.zeros)


@rule("Pad")
def pad(call: OnnxCall) -> Value:
    x = call.tensor(0)
    amounts = call.integers(1, "pads") or []
    axes = call.integers(3) or list(range(len(x)))
    filling = call.known[2] if len(call.node.input) > 2 and call.node.input[2] else None
    fill = float(filling) if filling is not None else float(call.options.get("value", 0.0))
    constant = call.options.get("mode", "constant") == "constant"
    dims, zeros = list(x.dims), list(x.zeros)
    changed: list[tuple[int, Dim, Dim]] = []
    for entry, axis in enumerate(axes):
        position = axis % len(x)
        left, right = amounts[entry], amounts[entry + len(axes)]
        if left == right == 0:
            continue
        if not constant or left < 0 or right < 0:
            call.freeze(dims[position], "is padded")
            dims[position] = call.opaque(call.sizes[position], "is padded")
            zeros[position] = False
            continue
        before, after = call.space.leaf(left), call.space.leaf(right)
        dims[position] = call.space.resolve(Concat((before, dims[position], after)))
        changed.append((entry, before, after))

    def numbers(kept: object) -> list[int]:
        assert callable(kept)
        now = list(amounts)
        for entry, before, after in changed:
            now[entry], now[entry + len(axes)] = kept(before), kept(after)
        return now

    if changed:
        if len(call.node.input) > 1:
            call.resize_input(1, numbers)
        else:
            call.resize_attribute("pads", numbers)
    unknown = len(call.node.input) > 2 and bool(call.node.input[2]) and filling is None
    return Value(tuple(dims), tuple(zeros) if fill == 0 and not unknown else (False,) * len(x))


@rule("Tile")
def tile(call: OnnxCall) -> Value:
    x = call.tensor(0)
    dims: list[Dim] = []
    for old, wanted in zip(x.dims, call.sizes, strict=True):
        if old.size != wanted:
            call.freeze(old, "is repeated")
        dims.append(old if old.size == wanted else call.opaque(wanted, "is repeated"))
    return Value(tuple(dims), (False,) * len(dims))


@rule("Gather")
def gather(call: OnnxCall) -> Value:
    x, which = call.tensor(0), call.tensor(1)
    axis = call.options.get("axis", 0) % len(x)
    numbers = call.known[1]
    if numbers is not None and numbers.size == 1:
        call.pick(x[axis], int(numbers.reshape(-1)[0]))
    else:
        call.freeze(x[axis], "rows are looked up by number" if numbers is None else "entries are picked by number")
    if x.parameter is not None and axis == 0 and len(x) == 2:
        call.space.tag(x[1], "linear_out")
    zeros = (*x.zeros[:axis], *(False for _ in which.dims), *x.zeros[axis + 1 :])
    return Value((*x.dims[:axis], *which.dims, *x.dims[axis + 1 :]), zeros)


@rule("GatherElements")
def gather_elements(call: OnnxCall) -> Value:
    return picking.gather(call, call.tensor(0), call.options.get("axis", 0), call.tensor(1))


@rule("ScatterElements", "Scatter")
def scatter_elements(call: OnnxCall) -> Value:
    return writing.scattered(call, call.tensor(0), int(call.options.get("axis", 0)), call.tensor(1), call.tensor(2))


@rule("ScatterND")
def scatter_nd(call: OnnxCall) -> Value:
    """The last dim of the indices numbers the first dims of x; the others of x go with the last ones of the updates."""
    x, which, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    count = which[-1].size
    for dim in (*x.dims[:count], *which.dims, *updates.dims[: len(which) - 1]):
        call.freeze(dim, picking.PICKED)
    zeros = [False] * count
    for position, theirs in zip(range(count, len(x)), range(len(which) - 1, len(updates)), strict=True):
        call.unify(x[position], updates[theirs])
        zeros.append(x.zeros[position] and updates.zeros[theirs])
    return Value(x.dims, tuple(zeros))


@rule("GatherND")
def gather_nd(call: OnnxCall) -> Value:
    """The last dim of the indices (k long) picks along k dims of x, after ``batch_dims`` that go together."""
    x, which = call.tensor(0), call.tensor(1)
    batch = call.options.get("batch_dims", 0)
    picked = which[-1].size
    for position in range(batch):
        call.unify(x[position], which[position])
    for dim in (*x.dims[batch : batch + picked], *which.dims[-1:]):
        call.freeze(dim, "entries are picked by number")
    rest = x.dims[batch + picked :]
    zeros = (*x.zeros[:batch], *(False for _ in which.dims[batch:-1]), *x.zeros[batch + picked :])
    return Value((*which.dims[:-1], *rest), zeros)


@rule("ArgMax", "ArgMin")
def argument(call: OnnxCall) -> Value:
    return picking.argument(call, call.tensor(0), call.options.get("axis", 0), bool(call.options.get("keepdims", 1)))


@rule("CumSum")
def accumulate(call: OnnxCall) -> Value:
    (axis,) = call.integers(1) or [0]
    return picking.accumulate(call, call.tensor(0), axis)


@rule("Trilu")
def triangle(call: OnnxCall) -> Value:
    return picking.triangle(call, call.tensor(0))


@rule("OneHot")
def one_hot(call: OnnxCall) -> Value:
    dims = [call.opaque(size, "counts classes") for size in call.sizes]
    for dim in call.tensor(0).dims:
        call.freeze(dim, "its numbers become positions")
    return Value(tuple(dims), (False,) * len(dims))


@rule("TopK")
def top(call: OnnxCall) -> list[Value]:
    x = call.tensor(0)
    axis = call.options.get("axis", -1) % len(x)
    call.freeze(x[axis], "is ordered")
    dims = list(x.dims)
    dims[axis] = call.opaque(call.sizes[axis], "is ordered")
    plain = Value(tuple(dims), (False,) * len(dims))
    return [plain, plain]


@rule("ConstantOfShape")
def filled(call: OnnxCall) -> Value:
    dims = tuple(call.space.leaf(size) for size in call.sizes)
    given = call.integers(0)
    if given is not None:
        call.sizes_after(0, dims, given)
    else:
        for dim in dims:
            call.freeze(dim, "its size is computed at run time")
    nothing = "value" not in call.options or not numpy_helper.to_array(call.options["value"]).any()
    return Value(dims, (nothing,) * len(dims))


@rule("Range")
def counted(call: OnnxCall) -> Value:
    return Value((call.opaque(call.sizes[0], "counts positions"),), (False,))


@rule("DepthToSpace")
def depth_to_space(call: OnnxCall) -> Value:
    """Channels (C, b, b) or, in DCR order, (b, b, C) become positions."""
    x, block = call.tensor(0), int(call.options["blocksize"])
    outer = x[1].size // block**2
    rowmajor = call.options.get("mode", "DCR") == "CRD"
    try:
        factors = call.space.factor(x[1], [outer, block, block] if rowmajor else [block, block, outer])
    except MismatchError as mismatch:
        call.freeze(x[1], str(mismatch))
        factors = [call.opaque(size, str(mismatch)) for size in ((outer, block, block) if rowmajor else (block, block, outer))]
    channel = factors[0] if rowmajor else factors[2]
    for dim in (*(f for f in factors if f is not channel), *x.dims[2:]):
        call.freeze(dim, "position")
    spatial = [call.opaque(size, "position") for size in call.sizes[2:]]
    return Value((x[0], channel, *spatial), (*x.zeros[:2], False, False))


@rule("SpaceToDepth")
def space_to_depth(call: OnnxCall) -> Value:
    """(N, C, H, W) -> (N, b * b * C, H / b, W / b)."""
    x, block = call.tensor(0), int(call.options["blocksize"])
    for dim in x.dims[2:]:
        call.freeze(dim, "position")
    channels = call.space.resolve(Product((*(call.opaque(block, "position") for _ in range(2)), x[1])))
    spatial = [call.opaque(size, "position") for size in call.sizes[2:]]
    return Value((x[0], channels, *spatial), (*x.zeros[:2], False, False))


@rule("GridSample")
def grid_sample(call: OnnxCall) -> Value:
    return picking.grid_sampler(call, call.tensor(0), call.tensor(1))
