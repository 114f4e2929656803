"""An ONNX file as a ``torch.nn.Module``, so that everything that is done to PyTorch models can be done to it."""

from hwprune.onnx_files.module import OnnxModule, read_onnx

__all__ = ["OnnxModule", "read_onnx"]
