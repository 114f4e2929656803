"""What lies beside a workload file, imported as if the file had been started; two folders do not get each other's."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

WORKLOAD_FILES = "hwprune_workload_"
"""The name of a workload file's module begins so; the file's own name follows."""
_loaded: dict[str, dict[str, ModuleType]] = {}
"""Folder -> the modules that came from it while a workload of it was loaded, those of its packages too. As `sys.modules` does, it
lasts as long as the process."""


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, ``import neighbour`` finds what is in ``folder``, and nothing that came from another workload's folder.

    Afterwards the folder stays on the path, because metrics, loaders and models import when they run. It moves to the end: a
    folder of scripts may hold an onnx.py, and hwprune imports its packages when it needs them. Where neighbours of two folders
    have one name, a later import gets that of the folder which was loaded last. If anything is raised, the folder leaves the
    path.
    """
    here = str(folder.resolve())
    others = {place: modules for place, modules in _loaded.items() if place != here}
    for modules in others.values():
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    hidden = [place for place in others if place in sys.path]
    for place in hidden:
        sys.path.remove(place)
    sys.modules.update(_loaded.get(here, {}))
    before = set(sys.modules)
    listed = here in sys.path
    sys.path.insert(0, here)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        # By its name: the file may have put others before it. One that the file added for the same folder is the file's.
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
        if succeeded and not listed and here not in sys.path:
            sys.path.append(here)
        sys.path.extend(place for place in hidden if place not in sys.path)
        _loaded.setdefault(here, {}).update(_new_from(here, before))
        for modules in others.values():
            for name, module in modules.items():
                sys.modules.setdefault(name, module)


def _new_from(folder: str, before: set[str]) -> dict[str, ModuleType]:
    """Modules of the folder that were imported since, and what is inside its packages."""
    new = {name: module for name, module in sys.modules.items() if name not in before}
    tops = {
        name
        for name, module in new.items()
        if "." not in name and not name.startswith(WORKLOAD_FILES) and _lies_in(module, Path(folder))
    }
    return {name: module for name, module in new.items() if name.partition(".")[0] in tops}


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Is it a file or a package of the folder itself? What is deeper inside, such as a virtual environment, is none of it."""
    packages = list(getattr(module, "__path__", ()))
    file = getattr(module, "__file__", None)
    places = packages or ([file] if file else [])
    return any(Path(place).resolve().parent == folder for place in places)


def module_of(path: Path) -> ModuleType:
    """A new module for a workload file, entered in `sys.modules`; with a number where another file has the same name.

    Pickle, dataclasses and `inspect.getsource` look a class's module up by its name.
    """
    name, number = f"{WORKLOAD_FILES}{path.stem}", 1
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        number += 1
        name = f"{WORKLOAD_FILES}{path.stem}_{number}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    return module
