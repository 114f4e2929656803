"""What a point of the front can be handed over as: one function a format, in one table.

Each writes into a folder and returns the names of its files. What runs is checked against the outputs of the file that the search
measured before it is handed over (`hwprune.deploy.exporting`).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from hwprune import export, patterns, record, sources
from hwprune.errors import CandidateFailure, UsageError
from hwprune.pruning import Candidate, Pruner
from hwprune.workload import Workload

PRECISIONS = ("fp32", "fp16")
REDUCE_AXES = 18
"""Opset in which reductions got ``noop_with_empty_axes``."""
LARGE = 64
"""Bytes from which a weight goes into the file beside the model; shapes and scalars stay where checkers can read them."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an ONNX file is written.

    Attributes:
        opset: version of the operators; None: as it is. Files are made with 20; older ones suit older runtimes.
        precision: ``fp16`` holds the weights in 16 bits; inputs and outputs stay in 32.
        external: weights in a file beside the model.
        batch: fix the batch dimension; None: it stays free, where the model has a free one.
    """

    opset: int | None = None
    precision: str = "fp32"
    external: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.precision not in PRECISIONS:
            faults.append(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.opset is not None and self.opset < 13:
            faults.append(f"opset must be 13 or newer, got {self.opset}")
        if self.batch is not None and self.batch < 1:
            faults.append(f"batch must be at least 1, got {self.batch}")
        if faults:
            raise UsageError("this can't be exported:", faults)

    @property
    def plain(self) -> bool:
        return self == Options()

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Point:
    """What a format is made from: a point of a run, its folder, and where its files go."""

    data: record.Record
    number: int
    source: Path
    out: Path
    options: Options
    workload: Workload | None = None

    @property
    def quantised(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = record.trial(self.data, self.number).get("quantised")
        return found

    @property
    def onnx_file(self) -> Path:
        """The file that was measured. Raises `UsageError` if it was no ONNX file."""
        if (name := record.model_file(self.data)) != "model.onnx":
            raise UsageError(f"the run measured {name} files: export them with --format pt2")
        return self.source / "model.onnx"

    def pruner(self) -> Pruner:
        """Of the workload that the run was made with. Raises `UsageError`."""
        self.refuse_quantised()
        workload = self.workload
        if workload is None:
            if not self.data["workload"]["source"]:
                raise UsageError("the run was made from a live Python object: name its workload with --workload")
            workload = sources.load(self.data["workload"]["source"])
        return Pruner(workload)

    def refuse_quantised(self) -> None:
        """Raises `UsageError` for a point whose weights no PyTorch module holds."""
        if self.quantised is not None:
            of = self.quantised["of"]
            rather = "" if of == "dense" else f", or the trial that it was made of ({of}) as this"
            raise UsageError(
                f"trial {self.number} is quantised: its weights are in model.onnx alone. Export it with --format onnx{rather}"
            )

    def candidate(self, pruner: Pruner) -> Candidate:
        """The candidate with the weights that were stored, trained ones included. Raises `UsageError`."""
        from safetensors.torch import load_file

        stored = export.read_recipe(self.source / "recipe.json")
        if stored.fingerprint != pruner.fingerprint:
            raise UsageError("the workload's model is not the one that the run was made with (fingerprint differs)")
        drop = [choice.unit for choice in stored.recipe.choices if choice.pattern == patterns.BRANCH]
        module = pruner.graph.cut(stored.keeps, drop)
        module.load_state_dict(load_file(self.source / "model.safetensors"))
        return Candidate(
            module=module, recipe=stored.recipe, keeps=stored.keeps, drop=tuple(drop), masks=stored.masks,
            fingerprint=pruner.fingerprint, example_inputs=pruner.workload.example_inputs, macs=0,
            template=lambda: pruner.template, orders=stored.orders,
        )  # fmt: skip


def _onnx(point: Point) -> list[str]:
    done = _recipe(point) + copy(point.source, point.out, ["model.safetensors", "quantise.json"])
    write_onnx(point.onnx_file, point.out / "model.onnx", point.options)
    return [*done, *(path.name for path in sorted(point.out.glob("model.onnx*")))]


def write_onnx(source: Path, path: Path, options: Options) -> None:
    """The measured file, converted as asked for. Raises `CandidateFailure` if it can't be."""
    if options.plain:
        for part in sorted(source.parent.glob("model.onnx*")):
            shutil.copyfile(part, path.parent / part.name)
        return
    model = onnx.load(str(source))
    model = converted_opset(model, options.opset)
    if options.precision != "fp32":
        model = export.converted(model, options.precision)
    if options.batch is not None:
        _fix_batch(model, options.batch)
    if options.external:
        onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=LARGE)
    else:
        export.save_onnx(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise CandidateFailure("export", f"the converted file is no valid ONNX: {first}") from error


def converted_opset(model: onnx.ModelProto, opset: int | None) -> onnx.ModelProto:
    """The same model with another version of the standard operators. Raises `CandidateFailure`, `UsageError`."""
    import onnx.version_converter

    now = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset is None or opset == now:
        return model
    if opset > onnx.defs.onnx_opset_version():
        raise UsageError(f"the installed onnx knows opsets up to {onnx.defs.onnx_opset_version()}, got {opset}")
    try:
        made: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises its own types
        first = (str(error).strip().splitlines() or [""])[0]
        raise CandidateFailure("export", f"opset {now} -> {opset}: {first}") from error
    for node in made.graph.node if opset < REDUCE_AXES else ():  # the converter leaves in what older opsets don't know
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
            node.attribute.remove(attribute)
    return made


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """The free dims of inputs and outputs that bear the batch's name are set; shapes in between follow from them."""
    names = {item.type.tensor_type.shape.dim[0].dim_param for item in model.graph.input if item.type.tensor_type.shape.dim} - {""}
    if not names:
        raise UsageError("the model's batch is fixed already: leave --batch out")
    for item in (*model.graph.input, *model.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = batch
    del model.graph.value_info[:]


def _recipe(point: Point) -> list[str]:
    return copy(point.source, point.out, ["recipe.json", "keep.safetensors", "recovery.json"])


def _safetensors(point: Point) -> list[str]:
    point.refuse_quantised()
    return _recipe(point) + copy(point.source, point.out, ["model.safetensors"])


def _pt2(point: Point) -> list[str]:
    pruner = point.pruner()
    candidate = point.candidate(pruner)
    export.to_pt2(candidate.module, pruner.workload.example_inputs, point.out / "model.pt2")
    return [*_recipe(point), "model.pt2"]


def _openvino(point: Point) -> list[str]:
    """OpenVINO's own format, with the batch free; ``--precision fp16`` stores the weights in 16 bits."""
    try:
        import openvino
    except ImportError as error:
        raise UsageError("openvino is not installed: pip install 'hwprune[openvino]'") from error
    try:
        model = openvino.convert_model(str(point.onnx_file))
        openvino.save_model(model, str(point.out / "model.xml"), compress_to_fp16=point.options.precision == "fp16")
    except Exception as error:  # the converter raises its own types
        first = (str(error).strip().splitlines() or [""])[0]
        raise CandidateFailure("export", f"OpenVINO: {type(error).__name__}: {first}") from error
    return [*_recipe(point), "model.xml", "model.bin"]


BUILD = """#!/bin/sh
# Builds the TensorRT engine on the device that will run it; written by hwprune.
# Engines fit the device and the TensorRT version that built them, so this is run on the target, once.
set -eu
cd "$(dirname "$0")"
exec trtexec --onnx=model.onnx --saveEngine=model.plan --timingCacheFile=timing.cache \\
    {flags}"$@"
"""


def _tensorrt(point: Point) -> list[str]:
    """The ONNX file with the script that builds the engine; the engine itself where TensorRT and the device are there."""
    done = _onnx(point)
    shapes = point.data["workload"]["example_shapes"]
    inputs = onnx.load(str(point.out / "model.onnx"), load_external_data=False).graph.input
    given = _shapes(inputs, shapes)
    patterns_ = {choice["pattern"] for choice in record.trial(point.data, point.number)["recipe"]["choices"]}
    # One shape: tactics are chosen for what will run. Precision comes from the file: from TensorRT 11 on networks are strongly
    # typed.
    # Names are the user's model's own: they must reach trtexec as they are, and never the shell.
    flags = "".join(f"{shlex.quote(f'--{which}Shapes={given}')} " for which in ("min", "opt", "max")) if given else ""
    flags += "--sparsity=enable " if any(":" in pattern and pattern[0].isdigit() for pattern in patterns_) else ""
    script = point.out / "build.sh"
    script.write_text(BUILD.format(flags=flags), encoding="utf-8")
    script.chmod(0o755)
    done.append(script.name)
    return done + _engine(point, [tuple(shape) for shape in shapes])


def _shapes(inputs: Any, shapes: Sequence[Sequence[int]]) -> str:
    """``name:1x3x8x8,...`` of the inputs with a free dim; trtexec takes no shapes of others. Raises `CandidateFailure`."""
    found = []
    for item, shape in zip(inputs, shapes, strict=False):
        if not shape or all(dim.dim_value > 0 for dim in item.type.tensor_type.shape.dim):
            continue
        if set(item.name) & set(":,"):
            raise CandidateFailure("export", f"trtexec can't be told the shape of input {item.name!r}: its name holds ':' or ','")
        found.append(f"{item.name}:{'x'.join(str(int(size)) for size in shape)}")
    return ",".join(found)


def _engine(point: Point, shapes: list[tuple[int, ...]]) -> list[str]:
    """Build it here, if this is the place; the timing cache goes along, so that the next build chooses the same tactics."""
    from hwprune import runtimes
    from hwprune.runtimes.base import Settings

    if runtimes.get("tensorrt").missing() is not None:
        return []
    runtimes.get("tensorrt").load(point.out / "model.onnx", Settings(shapes=tuple(shapes), cache=str(point.out)))
    return sorted(path.name for path in point.out.iterdir() if path.suffix in (".plan", ".cache", ".engine"))


def _huggingface(point: Point) -> list[str]:
    """``save_pretrained`` of the user's own class, where it is one of transformers and can hold the shapes."""
    from hwprune.own_class import apply_to_module

    pruner = point.pruner()
    candidate = point.candidate(pruner)
    holder = pruner.workload.model
    if not _savers(holder):
        raise UsageError(
            f"{type(holder).__name__} is no transformers model and holds none (nothing has save_pretrained): "
            "export it with --format safetensors"
        )
    name, model = _savers(apply_to_module(holder, candidate))[0]
    try:
        model.save_pretrained(str(point.out), safe_serialization=True)
    except Exception as error:  # the library raises what it meets
        raise UsageError(f"save_pretrained of {type(model).__name__} failed: {type(error).__name__}: {error}") from error
    if fault := _not_loadable(model, point.out):
        raise UsageError(
            f"{type(model).__name__} does not load what was pruned: {fault}. Its configuration has one size for all layers; "
            "prune with --space tied, so that all layers keep the same, or export --format safetensors"
        )
    if name:
        (point.out / "README.md").write_text(
            f"This is the part `{name}` of the workload's model; the rest is in the `safetensors` format.\n", encoding="utf-8"
        )
    return [*_recipe(point), *sorted(path.name for path in point.out.iterdir() if path.name != "recipe.json")]


def _savers(model: Any) -> list[tuple[str, Any]]:
    """Parts that write folders for ``from_pretrained``, the outermost first."""
    return [(name, part) for name, part in model.named_modules() if hasattr(part, "save_pretrained") and hasattr(part, "config")]


def _not_loadable(model: Any, folder: Path) -> str | None:
    """Why the class does not give the same weights back from a folder; None: it does."""
    try:
        again = type(model).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises what it meets
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    mine, loaded = model.state_dict(), again.state_dict()
    if mine.keys() != loaded.keys():
        return f"{len(mine.keys() ^ loaded.keys())} tensors differ in name"
    wrong = [name for name in mine if mine[name].shape != loaded[name].shape or not bool((mine[name] == loaded[name]).all())]
    return f"{len(wrong)} tensors differ, {wrong[0]} first" if wrong else None


def copy(source: Path, out: Path, names: list[str], rename: Mapping[str, str] | None = None) -> list[str]:
    """Those of ``names`` that are there; the names that they have in ``out``."""
    done = []
    for name in names:
        if (source / name).is_file():
            target = (rename or {}).get(name, name)
            shutil.copyfile(source / name, out / target)
            done.append(target)
    return done


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        write: files of a point; their names.
        runs: the file that a runtime runs, and the profile that runs it for `hwprune verify`; None: nothing is run.
        options: which of `Options` it takes.
    """

    description: str
    write: Callable[[Point], list[str]]
    runs: tuple[str, str] | None = None
    options: frozenset[str] = frozenset()


ONNX_OPTIONS = frozenset({"opset", "precision", "external", "batch"})
FORMATS: Mapping[str, Format] = {
    "onnx": Format("model.onnx with dense.onnx and samples for `hwprune verify`", _onnx, ("model.onnx", ""), ONNX_OPTIONS),
    "openvino": Format(
        "model.xml and model.bin, OpenVINO's own format", _openvino, ("model.xml", "cpu-openvino"), frozenset({"precision"})
    ),
    "tensorrt": Format(
        "model.onnx with the script that builds the engine, and the engine where TensorRT is", _tensorrt, ("model.onnx", ""),
        ONNX_OPTIONS,
    ),
    "pt2": Format("model.pt2, a torch.export program (needs the workload)", _pt2),
    "safetensors": Format("model.safetensors with the recipe and its masks", _safetensors),
    "huggingface": Format("a folder for from_pretrained, where the class can hold the shapes (needs the workload)", _huggingface),
    "recipe": Format("recipe.json and the masks, to apply again", _recipe),
}  # fmt: skip
