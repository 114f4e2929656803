"""What TensorRT made of 2:4 weights: read from its log and its engine inspector."""

from __future__ import annotations

import json
import re
from typing import Any

_SPARSITY = re.compile(r"\(Sparsity\) (Found|Chose) (\d+) layer\(?s?\)?[^:]*:?\s*(.*)")


class SparsityLog:
    """What the verbose build log says of sparse tactics: which layers were eligible, which run one."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.chosen: set[str] = set()
        self.counts: dict[str, int] = {}
        self.errors: list[str] = []

    def read(self, text: str) -> None:
        """One log message."""
        match = _SPARSITY.search(text)
        if match is None:
            return
        kind, count, names = match.groups()
        self.counts[kind] = self.counts.get(kind, 0) + int(count)
        listed = {name.strip() for name in names.split(",") if name.strip()}
        (self.found if kind == "Found" else self.chosen).update(listed)


def inspected(text: str) -> list[dict[str, str]]:
    """Name, kind, tactic and source nodes of each layer of the engine inspector's JSON, of TensorRT 10 or 11."""
    rows = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):  # a build without detailed verbosity lists names only
            rows.append({"name": layer, "kind": "", "tactic": "", "nodes": ""})
            continue
        nodes = " ".join(re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))))
        rows.append(
            {
                "name": str(layer.get("Name", "")),
                "kind": str(layer.get("LayerType", "")),
                "tactic": str(layer.get("TacticName", "")),
                "nodes": nodes,
            }
        )
    return rows


def verdicts(found: list[Any], log: SparsityLog, layers: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Per weighted node of the ONNX file: is it 2:4, was it eligible, does it run a sparse tactic, and if not, why not.

    TensorRT names fused layers after all their nodes, so a node is looked up inside the names.
    """
    rows = []
    for layout in found:
        fused = [layer for layer in layers if _names(layout.node, f"{layer['name']} {layer['nodes']}")]
        eligible = any(_names(layout.node, listed) for listed in log.found)
        tactic = any("sparse" in layer["tactic"].lower() for layer in fused)
        sparse = layout.fits and (tactic or any(_names(layout.node, listed) for listed in log.chosen))
        if sparse:
            why = ""
        elif not layout.fits:
            why = layout.why
        elif not eligible:
            why = "2:4 in the file, but TensorRT did not list it as eligible (too small, or its quantisation hides the weights)"
        else:
            why = "eligible, but TensorRT's own timing found a dense tactic faster at this shape"
        rows.append(
            {
                "node": layout.node,
                "two_four": layout.fits,
                "eligible": eligible,
                "built": bool(fused),
                "sparse": sparse,
                "why_not": why,
            }
        )
    return rows


def _names(node: str, text: str) -> bool:
    """Does ``node`` occur as a whole name? node_conv2d is not node_conv2d_10."""
    return bool(node) and re.search(rf"(?<![\w.]){re.escape(node)}(?![\w.])", text) is not None
