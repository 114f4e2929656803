"""Models whose blocks keep different sizes: what their configuration says of it, and the code that lies beside it.

Classes of transformers have one size for all blocks. Such a folder holds a small class of its own, which transformers runs with
``trust_remote_code=True``. For a Llama whose blocks keep all their query heads it is laid out as NVIDIA's Nemotron-NAS models
(Puzzle, Bercovich et al. 2024, arXiv 2411.19146), which vLLM runs by itself (``DeciLMForCausalLM``, ``block_configs``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hwprune.common.files import dump_json, read_json
from hwprune.streaming import folder, uneven_model
from hwprune.streaming.blocks import block_of
from hwprune.streaming.folder import UNEVEN as KEY
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sublayers import lengths_of

CODE, CONFIG_CODE = "modeling_uneven.py", "configuration_uneven.py"
LLAMA, DECI = "LlamaForCausalLM", "DeciLMForCausalLM"
DECI_TYPE = "nemotron-nas"
NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}
"""Branch of a Llama's block -> the norm before it, which goes with it."""

Shapes = Mapping[str, tuple[int, ...]]

_MODEL = '''

from transformers import {base} as Base  # noqa: E402
{more}

class {name}(Base):
    """{base} with blocks of sizes of their own."""
{own}
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        resize(self, config.uneven)
'''
_IMPORTED = f"from .{Path(CONFIG_CODE).stem} import UnevenConfig\n"
_OWN = "\n    config_class = UnevenConfig\n"
_CONFIG = '''"""{base}'s configuration with the sizes of each block, as Nemotron-NAS models have it."""

from typing import Any

from transformers import {config}


class Sizes(dict):
    """Numbers by their names."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class UnevenConfig({config}):
    model_type = "{kind}"

    def __init__(self, block_configs: Any = (), **numbers: Any) -> None:
        super().__init__(**numbers)
        self.block_configs = [Sizes((key, Sizes(value)) for key, value in block.items()) for block in block_configs]
'''


@dataclass(frozen=True, slots=True)
class Uneven:
    """The blocks that are to be written.

    Attributes:
        kind: the class in the transformers library.
        blocks: name of the list of blocks.
        shapes: of each block: parameter -> shape. Branches that are gone have none.
        lengths: branch -> length of the tuple that it gives; 0: a tensor.
    """

    kind: Any
    blocks: str
    shapes: Sequence[Shapes]
    lengths: Mapping[str, int]

    def gone(self, place: int) -> dict[str, int]:
        """The modules that a block has lost -> `lengths`."""
        lost = [name for name in self.lengths if not any(key.startswith(f"{name}.") for key in self.shapes[place])]
        norms = [NORMS[name] for name in lost if name in NORMS and self.is_llama]
        return {name: self.lengths[name] for name in lost} | dict.fromkeys(norms, 0)

    def keeps(self, place: int, name: str) -> bool:
        """Is this tensor of a block in the files?"""
        return not any(name.startswith(f"{module}.") for module in self.gone(place))

    @property
    def is_llama(self) -> bool:
        """Is the class the one whose uneven form others know?"""
        return bool(self.kind.__name__ == LLAMA)

    def config(self, dense: Any) -> Any:
        """The configuration.

        Args:
            dense: of the dense model, with as many blocks as there are.
        """
        found = copy.deepcopy(dense)
        changed = []
        for layer, own in zip(folder.bare(self.kind, dense).get_submodule(self.blocks).children(), self.shapes, strict=True):
            before = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
            changed.append({name: list(own[name]) for name, shape in before.items() if name in own and own[name] != shape})
        setattr(found, KEY, {
            "class": self.kind.__name__, "model_type": dense.model_type, "blocks": self.blocks, "shapes": changed,
            "gone": [self.gone(place) for place in range(len(self.shapes))],
        })  # fmt: skip
        return found

    def block_configs(self, dense: Any) -> list[dict[str, Any]] | None:
        """Sizes as Nemotron-NAS models tell them; None: they can't."""
        size = getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads
        found = []
        for place, own in enumerate(self.shapes):
            gone = self.gone(place)
            attention: dict[str, Any] = {"no_op": "self_attn" in gone, "replace_with_linear": False, "n_heads_in_group": None}
            if not attention["no_op"]:
                heads, groups = (own[f"self_attn.{name}_proj.weight"][0] // size for name in "qk")
                if heads != dense.num_attention_heads:
                    return None
                attention["n_heads_in_group"] = heads // groups
            neurons = None if "mlp" in gone else own["mlp.gate_proj.weight"][0]
            found.append({
                "attention": attention,
                "ffn": {"no_op": "mlp" in gone, "replace_with_linear": False, "intermediate_size": neurons},
            })  # fmt: skip
        return found

    def write(self, dense: Any, out: Path) -> bool:
        """Write config.json and the code; returns whether it is laid out as vLLM knows it.

        Args:
            dense: see `config`.
        """
        told = self.block_configs(dense) if self.is_llama else None
        name = "UnevenForCausalLM" if told is None else DECI
        self.config(dense).save_pretrained(str(out))
        facts = read_json(out / "config.json")
        facts["architectures"] = [name]
        facts["auto_map"] = {"AutoModelForCausalLM": f"{Path(CODE).stem}.{name}"}
        code = Path(uneven_model.__file__).read_text(encoding="utf-8")
        more, own = ("", "") if told is None else (_IMPORTED, _OWN)
        (out / CODE).write_text(code + _MODEL.format(base=self.kind.__name__, name=name, more=more, own=own), encoding="utf-8")
        if told is not None:
            facts |= {"model_type": DECI_TYPE, "block_configs": told}
            facts["auto_map"]["AutoConfig"] = f"{Path(CONFIG_CODE).stem}.UnevenConfig"
            text = _CONFIG.format(base=self.kind.__name__, config=type(dense).__name__, kind=DECI_TYPE)
            (out / CONFIG_CODE).write_text(text, encoding="utf-8")
        (out / "config.json").write_text(dump_json(facts))
        return told is not None


def known_lengths(source: LanguageFolder, given: Sequence[Mapping[str, Any]], hidden: torch.Tensor) -> dict[str, int]:
    """Name of each branch -> length of the tuple that it gives (0: a tensor); empty if there are no such branches.

    Args:
        given: what each block is given besides (see `blocks.entering`).
        hidden: (1, tokens, width), what enters the first block.
    """
    lengths: dict[str, int] = {}
    for gone in getattr(source.config, KEY, {}).get("gone", []):
        lengths |= {name: length for name, length in gone.items() if name not in NORMS.values()}
    for index in range(source.depth):
        if found := lengths_of(block_of(source, index, given[index]), hidden):
            return lengths | found
    return lengths


def differ(blocks: Sequence[Shapes]) -> bool:
    """Has a parameter different shapes in those blocks that have it?"""
    return any(
        len({tuple(block[name]) for block in blocks if name in block}) > 1 for name in {key for block in blocks for key in block}
    )
