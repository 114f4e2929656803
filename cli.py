#!/usr/bin/env python3
"""Starts the command line from a checkout without installing the project; its packages must be installed."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
for name in ("profiles", "search_spaces"):  # installed as hwprune.profiles and hwprune.search_spaces
    spec = importlib.util.spec_from_file_location(
        f"hwprune.{name}", ROOT / name / "__init__.py", submodule_search_locations=[str(ROOT / name)]
    )
    sys.modules[f"hwprune.{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[f"hwprune.{name}"])

from hwprune.cli.main import main  # noqa: E402 - the path must be set first

if __name__ == "__main__":
    sys.exit(main())
