"""The order of the house, as far as a machine can check it: ``python -m tests.house`` prints what is out of order.

`docs/architecture.md` is the map. What a check can't see (does a name say what it holds?) is for the reader.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import importlib.metadata
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hwprune"
MOST_LINES, EXPLAINED_LINES, MOST_CLASS_LINES, MOST_FIELDS, MOST_LOOSE = 400, 300, 250, 14, 8
FAMILIES = frozenset({"__init__", "base", "table", "graph", "point", "contract", "elementwise", "normalise", "recurrent"})
"""Stems that several folders share, because the files are of one kind."""
MANY_FIELDS = {
    "LanguageJob": "one field a word of language.json",
    "Job": "one field a word of job.toml",
    "Plan": "one field a word of a training's plan",
    "Trial": "one field a column of a trial in record.json",
    "LayerStatistics": "one field a statistic; criteria ask for them by name",
}
OLD_WORDS = re.compile(
    r"\b(Knob|knobs?|Pricing|Advisor|Advice|Rival|unpark|moved_up|one_look|hurried|twin|Letter|letter_s|Deciding|Held|_bury|speedup_of)\b"
)
BOUNDARIES = frozenset(
    {("latency.bench", "latency.worker"), ("latency.worker", "latency.bench"), ("searching.recording", "report.tables")}
)
"""Where a walk goes through a pipe or a file, and no import shows it."""
TESTED_ELSEWHERE = {
    # module, or a pattern of modules: (test file, why the tests stand there)
    "__init__": ("test_public.py", "public names are tested with the old paths"),
    "patterns": ("patterns/test_patterns.py", "the table is seen through the patterns"),
    "errors": ("cli/test_main.py", "every kind of error is a way out of the command line"),
    "cli.*": ("cli/test_main.py", "commands are tested as their user runs them, all in one file"),
    "common.old_paths": ("test_public.py", "old paths are public names"),
    "workload.average_precision": ("workload/test_detection.py", "mAP is seen through the metric"),
    "deploy.cascade_writing": ("deploy/test_cascading.py", "the files are looked at where they are delivered"),
    "workload.sample_files": ("workload/test_set_scoring.py", "targets of any form, as metrics of whole splits take them"),
    "workload.set_values": ("workload/test_set_scoring.py", "states and values are seen through the score that they make"),
    "deploy.cascade_verify": ("deploy/test_cascading.py", "what is verified is what the command has just delivered"),
    "deploy.early_exits": ("deploy/test_cascading.py", "exits are seen through what the command delivers"),
    "deploy.cascade_models": ("deploy/test_cascading.py", "what can't give a cascade is told by its command"),
    "deploy.cascade_files": ("deploy/test_cascading.py", "the files are looked at where they are delivered"),
    "report.cascade_page": ("deploy/test_cascading.py", "rows and picture of a delivered cascade"),
    "criteria.*": ("criteria/test_criteria.py", "one contract for all criteria, and each against loops"),
    "patterns.*": ("patterns/test_patterns.py", "one contract for all patterns"),
    "deploy.onnx_quantisers": ("deploy/test_quantise.py", "quantisers are tested through the table that names them"),
    "deploy.converters": ("runtimes/test_conversion.py", "the two ends of the pipe are tested together"),
    "runtimes.converter_process": ("runtimes/test_conversion.py", "the two ends of the pipe are tested together"),
    "runtimes.fixed_sizes": ("runtimes/test_contract.py", "one contract for all runtimes"),
    "runtimes.onnxruntime_web": ("runtimes/test_contract.py", "one contract for all runtimes"),
    "deploy.point": ("deploy/test_formats.py", "a point is what a format writes"),
    "latency.fingerprint": ("latency/test_sensors.py", "a fingerprint is made of sensors' readings"),
    "latency.fresh": ("latency/test_bench.py", "fresh processes are benches"),
    "latency.host": ("latency/test_remote.py", "hosts are tested with a server of our own"),
    "latency.splitting": ("latency/test_segments.py", "segments are what splitting gives"),
    "latency.table_files": ("latency/test_latency_table.py", "a table's files are tested with the table"),
    "latency.worker*": ("latency/test_bench.py", "the two ends of the pipe are tested together"),
    "layers.*": ("calibration/test_collect.py", "layers, parts and units are tested by what calibration reads through them"),
    "methods.method": ("methods/test_layerwise.py", "methods are tested on single layers"),
    "onnx_files.module": ("structure/onnx/test_graph.py", "imported models are compared with the runtime and cut there"),
    "onnx_files.operators.*": (
        "structure/onnx/test_graph.py",
        "one graph an operator: computed as the runtime computes it, and cut",
    ),
    "onnx_files.*": ("pruning/test_pruner.py", "files are tested by the candidates that they hold"),
    "probe.*": ("probe/test_probing.py", "a probe is tested as a whole, its files included"),
    "pruning.unit_options": ("pruning/test_database.py", "options come from the database"),
    "records.schema": ("test_fuzz_files.py", "a schema is what broken records are held against"),
    "recovery.tickets.*": ("recovery/tickets/test_drawing.py", "a drawing goes through its course and writes its files"),
    "report.tables": ("searching/test_session.py", "front.csv and trials.csv are tested in a run directory"),
    "runtimes.*": ("runtimes/test_contract.py", "one contract for all runtimes"),
    "searching.evaluating.candidate_files": ("searching/evaluating/test_evaluator.py", "files are made and cleared by trials"),
    "searching.final.confirm": ("searching/test_session.py", "a front is confirmed in a whole search"),
    "searching.final.point": ("searching/final/test_finalists.py", "points are what finalists become"),
    "searching.recording": ("searching/test_session.py", "a record is written by a whole search"),
    "searching.result": ("searching/test_session.py", "a result is given by a whole search"),
    "searching.sampling.items": ("searching/sampling/test_savings_estimator.py", "items are built from savings"),
    "searching.sampling.posterior": ("searching/sampling/test_knapsack.py", "what is believed shows in what is proposed"),
    "language.language_job": ("language/test_language_search.py", "its fields are what a whole search is told"),
    "language.front_points": ("language/test_language_search.py", "points are written by a whole search"),
    "streaming.block_templates": ("streaming/test_assembled_onnx.py", "templates are what files are put together from"),
    "workload.text_windows": ("workload/test_language.py", "windows are tested as a language model's data"),
    "streaming.written_files": ("streaming/test_road.py", "files are written by the whole road"),
    "searching.sampling.savings": ("searching/sampling/test_savings_estimator.py", "savings are what the estimator gives"),
    "searching.search": ("searching/test_session.py", "the function runs a session"),
    "searching.setup": ("searching/test_session.py", "parts are set up for a whole search"),
    "searching.space.space_file": ("searching/space/test_space.py", "a file and the space that it gives"),
    "searching.study.backend": ("searching/study/test_store.py", "the store is the backend's only user"),
    "searching.study.lease": ("searching/study/test_rescue.py", "leases decide about rescue"),
    "structure.onnx.*": ("structure/onnx/test_graph.py", "one graph an operator: cut equals masked in the runtime"),
    "structure.torch.rules.*": ("structure/test_rules.py", "one small program an operator, all families in one table"),
    "structure.torch.*": ("structure/torch/test_graph.py", "models are captured, analysed and cut together"),
    "structure.*": ("structure/torch/test_graph.py", "axes and scopes are tested by what is cut"),
    "workload.demos": ("cli/test_main.py", "the demos are searched there"),
    "workload.neighbours": ("workload/test_loading.py", "neighbours are loaded with a workload"),
    "workload.workload": ("workload/test_data_checks.py", "a workload is tested by what is checked of it"),
}


@cache
def modules() -> dict[str, tuple[Path, str, ast.Module]]:
    """Dotted name below hwprune -> (path, text, tree)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = (path, text, ast.parse(text))
    return found


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """(module, class) for every class at the top of a module."""
    for name, (_, _, tree) in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                yield name, node


def loose_modules() -> list[str]:
    """1. Few modules stand beside the folders."""
    loose = [path.name for path in PACKAGE.glob("*.py")]
    return [f"{len(loose)} modules at the top of hwprune: {', '.join(loose)}"] if len(loose) > MOST_LOOSE else []


def long_modules() -> list[str]:
    """2. No module is longer than 400 lines, and one over 300 opens with its reason."""
    faults = []
    for name, (_, text, tree) in modules().items():
        lines = text.count("\n")
        if lines > MOST_LINES:
            faults.append(f"{name} has {lines} lines")
        elif lines > EXPLAINED_LINES and "one file because" not in (ast.get_docstring(tree) or "").lower():
            faults.append(f'{name} has {lines} lines and does not say why it is one file ("One file because ...")')
    return faults


def big_classes() -> list[str]:
    """3. No class is longer than 250 lines or has more than 14 fields, but for those that mirror a file."""
    faults = []
    for module, node in classes():
        lines = (node.end_lineno or 0) - node.lineno
        fields = sum(isinstance(part, ast.AnnAssign) for part in node.body)
        if lines > MOST_CLASS_LINES:
            faults.append(f"{module}.{node.name} has {lines} lines")
        if fields > MOST_FIELDS and node.name not in MANY_FIELDS:
            faults.append(f"{module}.{node.name} has {fields} fields")
    return faults


def hidden_imports() -> list[str]:
    """4. Own modules are imported at the top, except in cli/, whose start must be quick. (Layers and circles: lint-imports.)"""
    faults = []
    for name, (_, _, tree) in modules().items():
        if name.startswith("cli"):
            continue
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                faults += [
                    f"{name}.{function.name} imports {node.module}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hwprune"
                ]
    return faults


def repeated_names() -> list[str]:
    """5. No public class name and no file stem twice, families apart."""
    names, stems = collections.defaultdict(list), collections.defaultdict(list)
    for module, node in classes():
        if not node.name.startswith("_"):
            names[node.name].append(module)
    for name, (path, _, _) in modules().items():
        if path.stem not in FAMILIES:
            stems[path.stem].append(name)
    faults = [f"class {name}: {', '.join(where)}" for name, where in names.items() if len(where) > 1]
    return faults + [f"file {stem}.py: {', '.join(where)}" for stem, where in stems.items() if len(where) > 1]


def walks() -> list[list[tuple[str, str]]]:
    """The walks of docs/architecture.md: for each its (module, name) in order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text[text.index("## Walks") : text.index("## Words")]
    found: list[list[tuple[str, str]]] = []
    for line in section.splitlines():
        step = re.match(r"(\d+)\. `hwprune/(\S+)\.py` `(\w+)`", line)
        if step:
            if step[1] == "1":
                found.append([])
            found[-1].append((step[2].replace("/", "."), step[3]))
    return found


def broken_walks() -> list[str]:
    """6. The walks of the architecture page lead from file to file: each name is there, each step is an import, no file comes twice."""
    faults = []
    for walk in walks():
        places = [module for module, _ in walk]
        if len(set(places)) < len(places):
            faults.append(f"the walk from {places[0]} comes to a file twice")
        for module, name in walk:
            if module not in modules() or not re.search(rf"^(?:class |def )?{name}\b", modules()[module][1], re.MULTILINE):
                faults.append(f"docs/architecture.md: there is no {module}.{name}")
        for here, there in itertools.pairwise(places):
            if (here, there) not in BOUNDARIES and not (_imports(here, there) or _imports(there, here)):
                faults.append(f"docs/architecture.md: no import leads from {here} to {there}")
    return faults


def _imports(importer: str, imported: str) -> bool:
    """Does a module import another, or a name of it that a package hands on?"""
    package, _, stem = imported.rpartition(".")
    for node in ast.walk(modules()[importer][2]):
        if isinstance(node, ast.ImportFrom):
            source = (node.module or "").removeprefix("hwprune").lstrip(".")
            if source == imported or (source == package and any(alias.name == stem for alias in node.names)):
                return True
    return False


def old_words() -> list[str]:
    """7. Words that were replaced by the field's are gone from the code."""
    return [
        f"{name}: {match[0]}"
        for name, (_, text, _) in modules().items()
        if name != "common.old_paths"  # which says what the old names were
        for match in OLD_WORDS.finditer(text)
    ]


def fragments() -> list[str]:
    """8. No docstring begins with "Of "."""
    return [
        f"{name}: {node.value[:50]!r}"
        for name, (_, _, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("Of ")
        and "\n" in node.value + "\n"
    ]


def missing_tests() -> list[str]:
    """9. Every module over 80 lines has a test file at the mirrored place, or a line with the reason in `TESTED_ELSEWHERE`."""
    faults = []
    for name, (path, text, _) in modules().items():
        if text.count("\n") <= 80:
            continue
        mirrored = ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.stem}.py")
        if not mirrored.is_file() and not any(fnmatchcase(name, pattern) for pattern in TESTED_ELSEWHERE):
            faults.append(f"{name} ({text.count(chr(10))} lines): no {mirrored.relative_to(ROOT)}")
    for pattern, (file, _) in TESTED_ELSEWHERE.items():
        if not any(fnmatchcase(name, pattern) for name in modules()):
            faults.append(f"TESTED_ELSEWHERE names {pattern}, which is no module")
        if not (ROOT / "tests" / file).is_file():
            faults.append(f"TESTED_ELSEWHERE names tests/{file}, which is not there")
    return faults


def missing_packages() -> list[str]:
    """12. Every package that is imported comes with `make setup`, or the type checker is told that it may be missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    installed: set[str] = set()
    asked = [*project["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
    while asked:  # what these need comes with them; what is asked for by an extra of theirs does not
        name = re.split(r"[^\w.-]", line := asked.pop())[0].lower().replace("_", "-")
        if name not in installed and "extra ==" not in line:
            installed.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                asked += importlib.metadata.requires(name) or []
    optional = {
        module.split(".")[0]
        for override in project["tool"]["mypy"]["overrides"]
        if override.get("ignore_missing_imports")
        for module in override["module"]
    }
    distributions = importlib.metadata.packages_distributions()
    faults = set()
    for name, (_, _, tree) in modules().items():
        for node in ast.walk(tree):
            imported = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
            for package in {module.split(".")[0] for module in imported} - sys.stdlib_module_names - {"hwprune"} - optional:
                if not {one.lower().replace("_", "-") for one in distributions.get(package, [])} & installed:
                    faults.add(f"{name} imports {package}: a clean checkout has no such package")
    return sorted(faults)


CHECKS = (
    loose_modules, long_modules, big_classes, hidden_imports, repeated_names, broken_walks, old_words, fragments, missing_tests,
    missing_packages,
)  # fmt: skip
"""Checks 10 (public names) and 11 (same seed, same record) are `tests/test_public.py` and `benchmarks/same_record.py`."""


def main() -> int:
    faults = 0
    for check in CHECKS:
        found = check()
        faults += len(found)
        print(f"{'ok ' if not found else 'NO '} {(check.__doc__ or '').splitlines()[0]}")
        for fault in found:
            print(f"      {fault}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
