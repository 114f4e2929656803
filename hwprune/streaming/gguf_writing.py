"""A pruned model as a GGUF file, for one that came from such a file: what that one says of tokens and authors is copied.

Tensors keep the types that they had, so that the file shrinks as the model does; rows that a type's blocks don't divide are kept
in 16 bits. A Llama some of whose blocks don't attend is written as ``deci``, the architecture whose sizes llama.cpp reads block
by block (NVIDIA's Llama-3_1-Nemotron-51B was the first).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import RunError, UsageError, described
from hwprune.streaming.folder import LanguageFolder

NAME = "model.gguf"
BY_BLOCK = {"llama": "deci"}
"""Architecture -> the one that holds the same blocks with sizes of their own."""
PERMUTED = ("llama", "deci")
"""Architectures whose queries and keys lie in pairs in the file: rotary embeddings turn neighbours there."""
LOOSEST = 0.25
"""Largest error of a tensor that is read back, over its norm; a few bits make 0.1, tensors in a wrong order more than 1."""


def write_gguf(source: Path, folder: LanguageFolder, kept: Sequence[int], out: Path, silent: Sequence[int] = ()) -> Counter[str]:
    """Write ``out`` with the folder's weights; returns how many tensors are of each type.

    Args:
        source: the GGUF file of the dense model.
        kept: the dense model's blocks that are there still, in order.
        silent: places among them, without attention.

    Raises:
        UsageError: the library does not know the architecture, or a tensor of it.
    """
    import gguf
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    reader = gguf.GGUFReader(str(source))
    dense = architecture(reader)
    arch = by_block(dense, silent) if silent or folder.uneven else dense
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in kinds or dense not in GGUF_CONFIG_MAPPING:
        raise UsageError(f"a GGUF file of architecture {arch} can't be written: gguf or transformers does not know its names")
    depth = max(folder.depth, max(kept) + 1)
    names = gguf.get_tensor_name_map(kinds[arch], depth)
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    writer = gguf.GGUFWriter(str(out), arch)
    sizes = _sizes(folder, names, silent) if arch != dense else {}
    _copy_fields(reader, writer, (dense, arch), folder.config, GGUF_CONFIG_MAPPING[dense], sizes)
    counts: Counter[str] = Counter()
    for name in folder.files:
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if told is None:
            raise UsageError(f"a GGUF file of architecture {arch} has no name for {name}")
        if told not in types and told == "output.weight":  # tied to the embedding, and so not in the file
            continue
        if _attends(told) in silent:
            continue
        was = types.get(names.get_name(_before(name, folder, kept), try_suffixes=(".weight", ".bias")) or "")
        array = folder.load([name])[name].float().numpy()
        if arch in PERMUTED and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            array = _in_pairs(array, _heads(folder.config, array))
        counts[_add(writer, told, array, was)] += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def check_gguf(written: LanguageFolder, read_back: LanguageFolder) -> None:
    """Hold what was read from the GGUF file against what was to be in it.

    Raises:
        RunError: a tensor is missing, or another one.
    """
    for name in written.files:
        if name not in read_back.files:
            raise RunError(f"the GGUF file lacks {name}")
        wanted, found = (one.load([name])[name].float() for one in (written, read_back))
        if wanted.shape != found.shape:
            raise RunError(f"{name} of the GGUF file has shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
        error = float((wanted - found).norm() / wanted.norm().clamp_min(1e-30))
        if not error <= LOOSEST:
            raise RunError(f"{name} of the GGUF file holds other numbers (error {error:.2g} of its norm)")


def architecture(reader: Any) -> str:
    """What a file says of it."""
    return str(reader.fields["general.architecture"].contents())


def block_size(file: Path, *, width: bool = False) -> int:
    """Weights of a row that share a scale in the widest of a file's types: sizes that it does not divide need a wider type.

    Args:
        width: of all matrices; else of those alone whose rows are as long as there are neurons.
    """
    import gguf

    read = [one for one in gguf.GGUFReader(str(file)).tensors if len(one.shape) > 1 and (width or "ffn_down" in one.name)]
    return int(max((gguf.GGML_QUANT_SIZES[one.tensor_type][0] for one in read), default=1))


def check_architecture(file: Path, silent: Sequence[int] = ()) -> None:
    """Raises `UsageError` if no architecture holds this file's model without some of its attention (at these places)."""
    import gguf

    by_block(architecture(gguf.GGUFReader(str(file))), silent)


def by_block(arch: str, silent: Sequence[int]) -> str:
    """The architecture for a model whose blocks at these places don't attend.

    Raises:
        UsageError: there is none, or llama.cpp could not load it.
    """
    if arch not in BY_BLOCK:
        raise UsageError(
            f"a GGUF file of architecture {arch} holds no blocks without attention (known: {', '.join(BY_BLOCK)}): write "
            "--format huggingface,onnx"
        )
    if 0 in silent:  # it takes the size of all heads from the first block's
        raise UsageError("a GGUF file can't hold a first block without attention: write --format huggingface,onnx")
    return BY_BLOCK[arch]


def _attends(name: str) -> int | None:
    """The block whose attention a tensor of a GGUF file belongs to, its norm included; None: it belongs to none."""
    parts = name.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[2].startswith("attn_") else None


def read_back(file: Path, written: LanguageFolder, out: Path, silent: Sequence[int]) -> LanguageFolder:
    """A file's weights in a folder like the one that was written; for architectures that transformers can't read.

    Args:
        silent: blocks without attention; what these lack is taken from what was written (zeros, and a norm before them).

    Raises:
        RunError: a tensor is missing.
    """
    import gguf
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(str(file))
    arch = architecture(reader)
    names = gguf.get_tensor_name_map({name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch], written.depth)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    found: dict[str, torch.Tensor] = {}
    for name in written.files:
        told = names.get_name(name, try_suffixes=(".weight", ".bias")) or ""
        own = written.load([name])[name].float()
        if told not in stored:
            if _attends(told) not in silent:
                raise RunError(f"the GGUF file lacks {name}")
            found[name] = own
            continue
        array = gguf.quants.dequantize(stored[told].data, stored[told].tensor_type).reshape(own.shape)
        if arch in PERMUTED and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            heads = _heads(written.config, array)
            array = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        found[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    out.mkdir(parents=True)
    written.config.save_pretrained(str(out))
    save_file(found, str(out / "model.safetensors"), metadata={"format": "pt"})
    return LanguageFolder(out)


def _copy_fields(
    reader: Any,
    writer: Any,
    archs: tuple[str, str],
    config: Any,
    mapping: dict[str, str | None],
    by_block: Mapping[str, list[int]],
) -> None:
    """Every field of the dense file, with the numbers of the new configuration.

    Args:
        archs: of the dense file, and of the new one.
        by_block: numbers that the file has for each block.
    """
    import gguf

    dense, arch = archs
    for key, values in by_block.items():
        writer.add_array(f"{arch}.{key}", values)
    new = {
        f"{dense}.{key}": getattr(config, attribute)
        for key, attribute in mapping.items()
        if attribute is not None and getattr(config, attribute, None) is not None
    }
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name.removeprefix(f"{dense}.") in by_block:
            continue
        kinds, value = field.types, field.contents()
        if isinstance(new.get(name), int) and isinstance(value, int) and not isinstance(value, bool):
            value = new[name]
        inner = kinds[-1] if len(kinds) > 1 else gguf.GGUFValueType.STRING if isinstance(value, list) else None
        told = f"{arch}.{name.removeprefix(f'{dense}.')}" if name.startswith(f"{dense}.") else name
        writer.add_key_value(told, value, kinds[0], sub_type=inner)
    size = _head_size(config)
    for key in ("attention.key_length", "attention.value_length"):  # else it would follow from the heads, which are fewer now
        if f"{dense}.{key}" not in reader.fields:
            writer.add_uint32(f"{arch}.{key}", size)


def _add(writer: Any, name: str, array: np.ndarray[Any, Any], was: Any) -> str:
    """Add a tensor in the type that it had, or in 16 bits; returns the type's name."""
    import gguf

    if array.ndim < 2 or was is None or was == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, array.astype(np.float32))
        return "F32"
    try:
        if was not in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), was), raw_dtype=was)
            return str(was.name)
    except (gguf.quants.QuantError, NotImplementedError, ValueError):  # a row that blocks don't divide, or a type to read alone
        pass
    writer.add_tensor(name, array.astype(np.float16))
    return "F16"


def _before(name: str, folder: LanguageFolder, kept: Sequence[int]) -> str:
    """The tensor's name in the dense model."""
    start = f"{folder.blocks}."
    if not name.startswith(start):
        return name
    place, _, rest = name.removeprefix(start).partition(".")
    return f"{start}{kept[int(place)]}.{rest}"


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _heads(config: Any, array: np.ndarray[Any, Any]) -> int:
    """How many heads lie in the rows of queries or keys."""
    return len(array) // _head_size(config)


def _sizes(folder: LanguageFolder, names: Any, silent: Sequence[int]) -> dict[str, list[int]]:
    """Numbers of the file that it has for each block.

    Args:
        names: the library's, of tensors.
    """
    stored = {
        names.get_name(name, try_suffixes=(".weight", ".bias")) or "": name for name in folder.files if name.endswith(".weight")
    }

    def rows(tensor: str) -> list[int]:
        found = []
        for place in range(folder.depth):
            name = stored.get(f"blk.{place}.{tensor}.weight")
            found.append(0 if name is None else folder.skeleton.get_parameter(name).shape[0])
        return found

    heads, groups = ([count // _head_size(folder.config) for count in rows(name)] for name in ("attn_q", "attn_k"))
    return {
        "attention.head_count": [0 if place in silent else count for place, count in enumerate(heads)],
        "attention.head_count_kv": [0 if place in silent else count for place, count in enumerate(groups)],
        "feed_forward_length": rows("ffn_up"),
    }


def _in_pairs(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head as (0, half, 1, half + 1, ...)."""
    try:
        return array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    except ValueError as error:
        raise UsageError(f"queries or keys of {len(array)} rows are no {heads} heads: {described(error)}") from error
