"""What a point of the front can be handed over as: one function a format, in one table.

Each writes into a folder and returns the names of its files. What runs is checked against the outputs of the file that the search
measured before it is handed over (`hwprune.deploy.exporting`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hwprune.deploy.converted_format import write_converted, write_tensorrt_rtx
from hwprune.deploy.huggingface_format import write_huggingface
from hwprune.deploy.onnx_format import write_onnx_point
from hwprune.deploy.point import ExportedPoint, copy, copy_recipe
from hwprune.deploy.tensorrt_format import write_tensorrt
from hwprune.errors import CandidateFailure, UsageError, described
from hwprune.onnx_files import to_onnx


def _safetensors(point: ExportedPoint) -> list[str]:
    point.refuse_quantised()
    return copy_recipe(point) + copy(point.source, point.out, ["model.safetensors"])


def _pt2(point: ExportedPoint) -> list[str]:
    pruner = point.pruner()
    candidate = point.candidate(pruner)
    to_onnx.to_pt2(candidate.module, pruner.workload.example_inputs, point.out / "model.pt2")
    return [*copy_recipe(point), "model.pt2"]


def _openvino(point: ExportedPoint) -> list[str]:
    """OpenVINO's own format, with the batch free; ``--precision fp16`` stores the weights in 16 bits."""
    try:
        import openvino
    except ImportError as error:
        raise UsageError("openvino is not installed: pip install 'hwprune[openvino]'") from error
    try:
        model = openvino.convert_model(str(point.onnx_file))
        openvino.save_model(model, str(point.out / "model.xml"), compress_to_fp16=point.options.precision == "fp16")
    except Exception as error:  # the converter raises its own types
        raise CandidateFailure("export", f"OpenVINO: {described(error)}") from error
    return [*copy_recipe(point), "model.xml", "model.bin"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        write: files of a point; their names.
        runs: the file that a runtime runs, and the profile that runs it for `hwprune verify`; None: nothing is run.
        options: which of `Options` it takes.
    """

    description: str
    write: Callable[[ExportedPoint], list[str]]
    runs: tuple[str, str] | None = None
    options: frozenset[str] = frozenset()


ONNX_OPTIONS = frozenset({"opset", "precision", "external", "batch"})
CONVERTED_OPTIONS = frozenset({"opset"})
FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        "model.onnx with dense.onnx and samples for `hwprune verify`", write_onnx_point, ("model.onnx", ""), ONNX_OPTIONS
    ),
    "openvino": Format(
        "model.xml and model.bin, OpenVINO's own format", _openvino, ("model.xml", "cpu-openvino"), frozenset({"precision"})
    ),
    "tensorrt": Format(
        "model.onnx with the script that builds the engine, and the engine where TensorRT is", write_tensorrt, ("model.onnx", ""),
        ONNX_OPTIONS,
    ),
    "tensorrt-rtx": Format(
        "model.onnx with engines that TensorRT for RTX builds here, one for each generation of GPUs (no GPU is needed)",
        write_tensorrt_rtx, None, ONNX_OPTIONS,
    ),
    "litert": Format("model.tflite, for LiteRT (TensorFlow Lite)", write_converted("litert"), None, CONVERTED_OPTIONS),
    "ncnn": Format("model.ncnn.param and model.ncnn.bin", write_converted("ncnn"), None, CONVERTED_OPTIONS),
    "mnn": Format("model.mnn", write_converted("mnn"), None, CONVERTED_OPTIONS),
    "executorch": Format("model.pte, for ExecuTorch", write_converted("executorch"), None, CONVERTED_OPTIONS),
    "pt2": Format("model.pt2, a torch.export program (needs the workload)", _pt2),
    "safetensors": Format("model.safetensors with the recipe and its masks", _safetensors),
    "huggingface": Format(
        "a folder for from_pretrained, where the class can hold the shapes (needs the workload)", write_huggingface
    ),
    "recipe": Format("recipe.json and the masks, to apply again", copy_recipe),
}  # fmt: skip
