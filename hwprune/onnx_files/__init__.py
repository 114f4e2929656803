"""An ONNX file as a ``torch.nn.Module``, so that everything that is done to PyTorch models can be done to it.

Begin with `module` (an ONNX file becomes a torch module), `to_onnx` (the other way) and `template` (a candidate's file, cut from
the dense one).
"""

from hwprune.onnx_files.module import OnnxModule, read_onnx

__all__ = ["OnnxModule", "read_onnx"]
