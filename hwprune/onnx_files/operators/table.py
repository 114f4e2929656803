"""The table of ONNX operators and how one is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

Tensor = torch.Tensor


@dataclass(slots=True)
class Node:
    """One node while it is computed.

    Attributes:
        tensors: inputs as tensors; None for one that is left out or that is given as numbers only.
        numbers: inputs known as whole numbers (or one float); an entry may be a size known only at run time.
        outputs: how many outputs are read.
    """

    kind: str
    options: Mapping[str, Any]
    opset: int
    tensors: Sequence[Tensor | None]
    numbers: Sequence[list[Any] | None]
    outputs: int
    training: bool

    def tensor(self, position: int) -> Tensor:
        value = self.optional(position)
        if value is None:
            raise ValueError(f"{self.kind} needs input {position}")
        return value

    def optional(self, position: int) -> Tensor | None:
        return self.tensors[position] if position < len(self.tensors) else None

    def integers(self, position: int, attribute: str | None = None) -> list[Any] | None:
        if position < len(self.numbers) and self.numbers[position] is not None:
            return self.numbers[position]
        if attribute is not None and attribute in self.options:
            given = self.options[attribute]
            return [given] if isinstance(given, int) else list(given)
        if self.optional(position) is not None:
            raise ValueError(f"{self.kind}: input {position} is computed at run time")
        return None

    def get(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)


Operator = Callable[[Node], Any]
OPERATORS: dict[str, Operator] = {}


def operator(*kinds: str) -> Callable[[Operator], Operator]:
    """Enter a function into the table."""

    def enter(function: Operator) -> Operator:
        for kind in kinds:
            if kind in OPERATORS:
                raise ValueError(f"two functions for {kind}")
            OPERATORS[kind] = function
        return function

    return enter


def torch_dtype(number: int) -> torch.dtype:
    """PyTorch's dtype of an ONNX type number. Raises ValueError for one it doesn't have."""
    types: dict[int, torch.dtype] = {
        onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64, onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32,
        onnx.TensorProto.INT16: torch.int16, onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.UINT8: torch.uint8,
        onnx.TensorProto.BOOL: torch.bool,
    }  # fmt: skip
    if number not in types:
        raise ValueError(f"PyTorch has no type {onnx.TensorProto.DataType.Name(number)}")
    return types[number]
