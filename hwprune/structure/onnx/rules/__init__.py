"""The rule table over ONNX operators, one file per family. Importing this package fills `table.RULES`."""

from hwprune.structure.onnx.rules import contract, elementwise, normalise, recurrent, shape
from hwprune.structure.onnx.rules.table import RULES, OnnxCall, rule

__all__ = ["RULES", "OnnxCall", "contract", "elementwise", "normalise", "recurrent", "rule", "shape"]
