"""The pruned model as a Hugging Face folder that loads, computes what the sweep has made, and generates."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import RunError, UsageError, described
from hwprune.streaming.blocks import DecoderBlock, block_of, entering, leaving
from hwprune.streaming.config_sizes import fitted, with_depth
from hwprune.streaming.folder import INDEX, UNEVEN, LanguageFolder, fill, skeleton
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sweep import Sweep, Swept
from hwprune.streaming.uneven import Uneven, differ, known_lengths

OTHERS = (
    "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "generation_config.json",
    "LICENSE*",
)  # fmt: skip
"""Files of the dense folder that a model needs besides."""
WHOLE = 8_000_000_000
"""Where nothing is said of memory, a model that needs at most so many bytes is loaded as a whole, too."""
SHARD = 400_000_000
"""Bytes of a file of weights; a block or an embedding alone may be larger."""
CHECKED = 2
"""Windows on which what was written is run again."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of hidden states after the last block, over their largest, by the type that was written."""


GENERATED = 4
"""Tokens that must be the same with a cache as without one."""
LOADED = 1e-3
"""Largest difference of logits between the loaded model and its blocks one by one, over the largest logit."""


def write_folder(sweep: Sweep, done: Swept, out: Path, memory: int | None = None) -> bool:
    """Write config, weights and tokenizer, and run the result: block by block, and, where it fits, as a whole that generates.

    Args:
        memory: bytes that may be used; default: `WHOLE`.

    Returns:
        Was it loaded as a whole, and did it generate?

    Raises:
        UsageError: the model's class can't have the new sizes; nothing of use is in ``out``.
        RunError: what was written computes something else than what was pruned.
    """
    folder = sweep.folder
    dtype = folder.dtype
    shapes = [_shapes(sweep.block_file(place)) for place in range(len(done.kept))]
    uneven = _uneven(sweep, done, shapes)
    config = with_depth(folder.config, done.kept)
    out.mkdir(parents=True, exist_ok=True)
    if uneven is not None:
        config.use_cache = True
        uneven.write(config, out)
    else:
        if folder.uneven:
            delattr(config, UNEVEN)
        wanted = sweep.shapes(done)
        for place, own in enumerate(shapes):
            wanted |= {f"{folder.blocks}.{place}.{name}": shape for name, shape in own.items()}
        config = fitted(folder.kind, config, wanted)
        config.use_cache = True
        config.architectures = [folder.kind.__name__]
        config.save_pretrained(str(out))
    _write_weights(sweep, done, out, dtype, skeleton(folder.kind, config), uneven)
    for pattern in OTHERS:
        for path in folder.path.glob(pattern):
            shutil.copy2(path, out / path.name)
    _check(sweep, done, out, dtype)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors")) * (4 // dtype.itemsize)
    if 2 * size + _in_use() > (WHOLE if memory is None else memory):
        return False
    _check_whole(sweep, done, out)
    return True


def _in_use() -> int:
    """Bytes that this process holds in memory; 0 where the system doesn't tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


@torch.no_grad()
def check_first(sweep: Sweep, done: Swept) -> None:
    """Can the class hold blocks like the first one, and do they compute the same in it?

    Raises:
        UsageError: it has no such sizes, or derives something from them that the cut has changed.
    """
    from safetensors.torch import load_file

    folder = sweep.folder
    own, config = _shapes(sweep.block_file(0)), with_depth(folder.config, done.kept)
    if sweep.plan.by_block or folder.uneven:
        config = _uneven_like(sweep, [own] * len(done.kept)).config(config)
    else:
        wanted = sweep.shapes(done)
        for place in range(len(done.kept)):
            wanted |= {f"{folder.blocks}.{place}.{name}": shape for name, shape in own.items()}
        config = fitted(folder.kind, config, wanted)
    made = skeleton(folder.kind, config)
    fill(made, {name: x.float() for name, x in sweep.other_tensors(done).items()})
    layer = made.get_submodule(f"{folder.blocks}.0")
    fill(layer, _with_zeros(load_file(str(sweep.block_file(0))), layer))
    hidden, given = entering(made, folder.blocks, sweep.ids[:1])
    found = DecoderBlock(layer, given[0])(hidden)
    shape = (len(sweep.ids), found.shape[1], found.shape[2])
    expected = HiddenStates(sweep.work / "pruned-0001", shape, sweep.dtype).read(0)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if done.kept[0] == 0 and not difference <= TOLERANCES.get(sweep.dtype, 1e-3):
        raise UsageError(
            f"{folder.kind.__name__} derives something from its sizes that this cut changes (rotary frequencies from the size of "
            f"its heads, for instance): a block of the new sizes computes something else (difference {difference:.2g})"
            + (". Beside hidden= other sizes must fit the new width: try another share of heads" if done.width else "")
        )


def _uneven(sweep: Sweep, done: Swept, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Uneven | None:
    """What is needed for blocks of different sizes; None: all have the same, apart from what zeros can stand for."""
    if done.width:  # what is not in the blocks has other sizes, too: the configuration must say them
        return None
    if not differ(shapes):
        return None
    return _uneven_like(sweep, shapes)


def _uneven_like(sweep: Sweep, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Uneven:
    folder = sweep.folder
    hidden, given = entering(folder.ends(), folder.blocks, sweep.ids[:1])
    return Uneven(folder.kind, folder.blocks, shapes, known_lengths(folder, given, hidden))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping


def _with_zeros(tensors: dict[str, torch.Tensor], layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """With zeros for the branches that the block has lost: its class knows no blocks without them."""
    gone = {name: x for name, x in layer.named_parameters() if name not in tensors}
    return tensors | {name: torch.zeros(x.shape) for name, x in gone.items()}


def _parts(sweep: Sweep, done: Swept, made: torch.nn.Module, uneven: Uneven | None) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors, a file's worth at a time.

    Args:
        made: the new model without weights.
        uneven: its blocks, where they have different sizes.
    """
    from safetensors.torch import load_file

    folder = sweep.folder
    yield sweep.other_tensors(done)
    for place in range(len(done.kept)):
        start = f"{folder.blocks}.{place}."
        tensors = load_file(str(sweep.block_file(place)))
        if uneven is None:
            tensors = _with_zeros(tensors, made.get_submodule(start.removesuffix(".")))
        else:
            tensors = {name: x for name, x in tensors.items() if uneven.keeps(place, name)}
        yield {f"{start}{name}": x for name, x in tensors.items()}


def _write_weights(
    sweep: Sweep, done: Swept, out: Path, dtype: torch.dtype, made: torch.nn.Module, uneven: Uneven | None
) -> None:
    """Files of about `SHARD` bytes, no more than one of which is in memory."""
    from safetensors.torch import save_file

    files: list[tuple[Path, list[str]]] = []
    waiting: dict[str, torch.Tensor] = {}
    total = size = 0

    def write() -> None:
        path = out / f"model-{len(files) + 1:05d}.partial"
        save_file(waiting, str(path), metadata={"format": "pt"})
        files.append((path, list(waiting)))
        waiting.clear()

    for tensors in _parts(sweep, done, made, uneven):
        stored = {key: x.to(dtype).contiguous() if x.is_floating_point() else x for key, x in tensors.items()}
        added = sum(x.numel() * x.element_size() for x in stored.values())
        if waiting and size + added > SHARD:
            write()
            size = 0
        waiting |= stored
        size, total = size + added, total + added
    write()
    places: dict[str, str] = {}
    for number, (path, names) in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(out / name)
        places |= dict.fromkeys(names, name)
    (out / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1) + "\n")


@torch.no_grad()
def _check(sweep: Sweep, done: Swept, out: Path, dtype: torch.dtype) -> None:
    """Run the folder block by block, from its own configuration, on windows of the calibration text."""
    written = LanguageFolder(out)
    ends = written.ends()
    last = HiddenStates(sweep.work / f"pruned-{len(done.kept):04d}", _shape(sweep, ends), sweep.dtype)
    for window in range(min(CHECKED, len(sweep.ids))):
        hidden, given = entering(ends, written.blocks, sweep.ids[window : window + 1])
        for index in range(written.depth):
            hidden = block_of(written, index, given[index])(hidden)
        expected = last.read(window)
        difference = float((hidden - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        loosest = max(TOLERANCES.get(dtype, 1e-3), TOLERANCES.get(sweep.dtype, 1e-3))
        if not difference <= loosest:
            raise RunError(
                f"what was written into {out} computes something else than what was pruned (difference {difference:.2g} of the "
                f"largest hidden state): {written.kind.__name__} derives something from its sizes that the cut has changed, as "
                "rotary embeddings do from head_dim"
            )


@torch.no_grad()
def _check_whole(sweep: Sweep, done: Swept, out: Path) -> None:
    """Load the folder as its user will: it gives the same logits as block by block, and generates."""
    written = LanguageFolder(out)
    one = sweep.ids[:1]
    hidden, given = entering(ends := written.ends(), written.blocks, one)
    for index in range(len(done.kept)):
        hidden = block_of(written, index, given[index])(hidden)
    expected = leaving(ends, written.blocks, one, hidden)
    del ends, hidden, given
    try:
        model = _loaded(written, out)
        found = model(one, use_cache=False).logits
        made = model.generate(one[:, :8], max_new_tokens=GENERATED, do_sample=False, repetition_penalty=1.0)
        by_cache = model(made[:, :-1], use_cache=False).logits[0, 7:]
    except Exception as error:  # the library raises what it meets
        raise RunError(f"{written.kind.__name__} does not load or generate from {out}: {described(error)}") from error
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if found.shape != expected.shape or not difference <= LOADED:
        raise RunError(f"{out}, loaded as a whole, computes something else than block by block (difference {difference:.2g})")
    if made.shape[1] <= 8:
        raise RunError(f"{written.kind.__name__} generates nothing from {out}")
    # Each word that came out of a cache must be the likeliest without one, too, or as likely.
    chosen = by_cache.gather(1, made[0, 8:, None])[:, 0]
    if not bool((by_cache.amax(1) - chosen <= LOADED * float(expected.abs().max())).all()):
        raise RunError(f"{written.kind.__name__} goes on with other tokens with a cache than without one, from {out}")


def _loaded(written: LanguageFolder, out: Path) -> Any:
    """The model as its user loads it."""
    import transformers

    if written.uneven:  # the code is the one that was written here
        return transformers.AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32, trust_remote_code=True).eval()
    return written.kind.from_pretrained(str(out), dtype=torch.float32).eval()


def _shape(sweep: Sweep, ends: torch.nn.Module) -> tuple[int, int, int]:
    hidden, _ = entering(ends, sweep.folder.blocks, sweep.ids[:1])
    return (len(sweep.ids), hidden.shape[1], hidden.shape[2])
