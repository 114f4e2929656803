"""What tells one loss, metric or model class from another: its code, the code that it calls, and the values that both hold.

The text names no address, no file's place and no order of a set, so that other processes and machines come to the same one. Code
of Python, of hwprune and of installed packages is taken by its name and its own source; what it calls in turn is not followed.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from hwprune.common.contents import content
from hwprune.workload.neighbours import WORKLOAD_FILES

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device, torch.Size, np.dtype)
"""Types whose ``repr`` is their value."""


def identity_of(value: object) -> str:
    """A text that is equal for values that compute the same: functions, classes, modules, objects, and what they hold."""
    return _Describer().text(value)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Identifies shape, type and values; 64 hex digits."""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(content(tensor))
    return digest.hexdigest()


class _Describer:
    """Writes the text of one value; what comes a second time, as in a circle, is only named by its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # an id is of one object only as long as the object lives

    def text(self, value: Any) -> str:
        """The text of any value."""
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, torch.Tensor):
            return f"tensor {tensor_digest(value)}"
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            return f"array {array.shape} {array.dtype} {hashlib.sha256(content).hexdigest()}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__} {'' if _is_library(value.__name__) else _source(value)}"
        if isinstance(value, PurePath):
            return f"path {value}"
        if id(value) in self._numbers:
            return f"again {self._numbers[id(value)]}"
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        return self._compound(value)

    def _compound(self, value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"{type(value).__name__} [{', '.join(map(self.text, value))}]"
        if isinstance(value, set | frozenset):
            return f"set {sorted(map(_key, value))}"
        if isinstance(value, Mapping):
            return f"{type(value).__name__} {self._items(value)}"
        if isinstance(value, functools.partial):
            return f"partial {self.text(value.func)} {self.text(value.args)} {self.text(value.keywords)}"
        if isinstance(value, types.MethodType):
            return f"method {self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, staticmethod | classmethod):
            return f"{type(value).__name__} {self.text(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.text(value.fget)}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, torch.jit.ScriptFunction | torch.jit.ScriptModule):
            return f"script {value.code}"
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
            return f"built-in {_name(value)}"
        return f"object {self.text(type(value))} {self._items(_attributes(value))}"

    def _items(self, values: Mapping[Any, Any]) -> str:
        return "{" + ", ".join(f"{_key(key)}: {self.text(item)}" for key, item in values.items()) + "}"

    def _function(self, function: types.FunctionType) -> str:
        """Bytecode is looked at beside the source: two lambdas on one line have the same source."""
        name = f"function {_name(function)} {_source(function)}"
        given = f"{self.text(function.__defaults__)} {self.text(function.__kwdefaults__)} {self.text(_cells(function))}"
        if _is_library(function.__module__):
            return f"{name} {given}"
        used = {key: function.__globals__[key] for key in sorted(_global_names(function.__code__)) if key in function.__globals__}
        return f"{name} {_bytecode(function.__code__)} {given} {self._items(used)}"

    def _class(self, kind: type) -> str:
        if _is_library(kind.__module__):
            return f"class {_name(kind)}"
        bases = [self.text(base) for base in kind.__bases__]
        held = {key: item for key, item in sorted(vars(kind).items()) if not key.startswith("__") or callable(item)}
        return f"class {_name(kind)} {_source(kind)} {bases} {self._items(held)}"

    def _module(self, module: torch.nn.Module) -> str:
        """Parameters, buffers (those too that are not saved), parts, hooks and all other attributes."""
        if "_orig_mod" in module._modules:  # torch.compile's wrapping computes the same
            return self.text(module._modules["_orig_mod"])
        values = {}
        for key, item in vars(module).items():
            hooks = key.endswith(
                ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
            )  # their keys count all hooks of the process
            values[key] = list(item.values()) if hooks and isinstance(item, Mapping) else item
        return f"module {self.text(type(module))} {self._items(values)}"


def _name(value: Any) -> str:
    """Module and qualified name; a workload file has no module's name of its own, but where two of one name are loaded."""
    module = str(getattr(value, "__module__", "") or "")
    return f"{'' if module.startswith(WORKLOAD_FILES) else module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _key(value: Any) -> str:
    """The text of a dictionary's key or a set's item, for itself: numbers of what came before would depend on the order."""
    if isinstance(value, tuple | frozenset):
        return f"{type(value).__name__} {sorted(map(_key, value)) if isinstance(value, frozenset) else list(map(_key, value))}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, PLAIN) else _name(type(value))


def _is_library(module: str | None) -> bool:
    """Is a module Python's, hwprune's (whose code has a fingerprint of its own) or an installed package's?"""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("", "builtins", "hwprune", "torch", "numpy"):
        return True
    file = str(getattr(sys.modules.get(module or ""), "__file__", "") or "")
    return not {"site-packages", "dist-packages"}.isdisjoint(PurePath(file).parts)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt, or built in
        return ""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code and that of all functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _bytecode(code: types.CodeType) -> str:
    digest = hashlib.sha256()
    for part in _codes(code):
        constants = [identity_of(item) for item in part.co_consts if not isinstance(item, types.CodeType)]
        digest.update(f"{part.co_code.hex()} {part.co_names} {part.co_varnames} {constants}".encode())
    return digest.hexdigest()


def _global_names(code: types.CodeType) -> set[str]:
    """Names that are looked up in the module. ``co_names`` would not do: it holds attributes too."""
    return {
        str(step.argval)
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }


def _cells(function: types.FunctionType) -> list[Any]:
    """Values that a function closes over; one that has none yet is left out."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:
            continue
    return cells


def _attributes(value: object) -> dict[str, Any]:
    """What an object holds, by ``__dict__`` and by slots."""
    slots: list[str] = []
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        slots += [names] if isinstance(names, str) else list(names)
    held = {name: getattr(value, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(value, name)}
    return held | dict(getattr(value, "__dict__", {}))
