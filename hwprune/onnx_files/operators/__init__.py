"""What ONNX operators compute, in PyTorch: one file a family. Importing this package fills `table.OPERATORS`.

Begin with `table` (what a node is, and how a function is entered).
"""

from hwprune.onnx_files.operators import common, indexing, recurrent, scattering, shapes, weighted
from hwprune.onnx_files.operators.table import OPERATORS, Node, operator, torch_dtype

__all__ = ["OPERATORS", "Node", "common", "indexing", "operator", "recurrent", "scattering", "shapes", "torch_dtype", "weighted"]
