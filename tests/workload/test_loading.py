"""Workload files import what lies beside them: at once, inside the function, and later; each file its own neighbours."""

from __future__ import annotations

import inspect
import sys
import textwrap

import pytest

from hwprune.errors import UsageError, WorkloadError
from hwprune.workload import loading, neighbours

TOP = """
    import dataclasses
    from tests.conftest import tiny_workload
"""


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """What a test imports and where it looks for it is forgotten."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(neighbours, "_loaded", {})
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("hw_near", "hwprune_workload_")):
            del sys.modules[name]


def write(folder, name, text):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


def test_a_path_that_the_file_adds_stays(tmp_path):
    write(tmp_path / "lib", "hw_near_lib.py", "NAME = 'of lib'")
    file = write(
        tmp_path / "a",
        "work.py",
        f"""{TOP}
    import sys
    sys.path.insert(0, {str(tmp_path / "lib")!r})
    def workload():
        import hw_near_lib
        return dataclasses.replace(tiny_workload(), name=hw_near_lib.NAME)
    """,
    )
    assert loading.load(f"{file}:workload").name == "of lib"
    assert str(tmp_path / "lib") in sys.path


def test_a_file_that_adds_its_own_folder_keeps_it_where_it_put_it(tmp_path):
    file = write(
        tmp_path, "work.py", f"{TOP}\n    import sys\n    sys.path.insert(0, {str(tmp_path)!r})\n    workload = tiny_workload\n"
    )
    loading.load(f"{file}:workload")
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize("module", ["file", "module"])
def test_a_neighbour_is_imported_inside_the_function(tmp_path, monkeypatch, module):
    write(tmp_path, "hw_near_inside.py", "NAME = 'inside'")
    write(
        tmp_path,
        "hw_near_work.py",
        f"{TOP}\n    def workload():\n        import hw_near_inside\n"
        "        return dataclasses.replace(tiny_workload(), name=hw_near_inside.NAME)\n",
    )
    monkeypatch.chdir(tmp_path)
    word = "hw_near_work.py:workload" if module == "file" else "hw_near_work:workload"
    assert loading.load(word).name == "inside"


def test_a_neighbour_is_imported_when_the_metric_runs(tmp_path):
    write(tmp_path, "hw_near_late.py", "VALUE = 3")
    file = write(
        tmp_path,
        "work.py",
        f"{TOP}\n    def metric(outputs, targets):\n        import hw_near_late\n        return hw_near_late.VALUE\n"
        "    def workload():\n        return dataclasses.replace(tiny_workload(), metric=metric)\n",
    )
    assert loading.load(f"{file}:workload").metric(None, None) == 3


def test_a_neighbour_hides_no_package_once_the_workload_is_loaded(tmp_path):
    """A folder of scripts may hold an onnx.py: hwprune imports its own packages when it needs them."""
    file = write(tmp_path, "work.py", f"{TOP}\n    workload = tiny_workload\n")
    loading.load(f"{file}:workload")
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1


WITH_NEIGHBOUR = f"""{TOP}
    from hw_near import NAME
    from hw_near_package.part import PART
    class Loss:
        def __call__(self, outputs, targets):
            return {{loss}}
    def workload():
        import hw_near
        assert hw_near.NAME == NAME
        return dataclasses.replace(tiny_workload(), name=NAME + PART, loss=Loss())
"""


def test_two_files_get_their_own_neighbours(tmp_path):
    workloads = []
    for name in ("a", "b"):
        write(tmp_path / name, "hw_near.py", f"NAME = {name!r}")
        write(tmp_path / name / "hw_near_package", "__init__.py", "")
        write(tmp_path / name / "hw_near_package", "part.py", f"PART = {name!r}")
        file = write(tmp_path / name, "work.py", WITH_NEIGHBOUR.format(loss=f"outputs + {len(workloads)}"))
        workloads.append(loading.load(f"{file}:workload"))
    assert [workload.name for workload in workloads] == ["aa", "bb"]
    # The two files have one name: classes are still found in their own file.
    assert [
        "outputs + 0" in inspect.getsource(type(workloads[0].loss)),
        "outputs + 1" in inspect.getsource(type(workloads[1].loss)),
    ] == [
        True,
        True,
    ]
    again = loading.load(f"{tmp_path / 'a' / 'work.py'}:workload")
    assert again.name == "aa"


def test_a_file_does_not_get_what_only_another_folder_has(tmp_path):
    write(tmp_path / "a", "hw_near.py", "NAME = 'a'")
    first = write(tmp_path / "a", "one.py", f"{TOP}\n    import hw_near\n    workload = tiny_workload\n")
    second = write(tmp_path / "b", "two.py", f"{TOP}\n    import hw_near\n    workload = tiny_workload\n")
    loading.load(f"{first}:workload")
    with pytest.raises(WorkloadError, match="hw_near"):
        loading.load(f"{second}:workload")
    assert sys.modules["hw_near"].NAME == "a"  # the first file's, for what it imports later


def test_two_files_of_one_folder_share_their_neighbours(tmp_path):
    write(tmp_path, "hw_near.py", "calls = []")
    for name in ("one", "two"):
        write(
            tmp_path,
            f"{name}.py",
            f"{TOP}\n    import hw_near\n    hw_near.calls.append({name!r})\n    workload = tiny_workload\n",
        )
        loading.load(f"{tmp_path / name}.py:workload")
    assert sys.modules["hw_near"].calls == ["one", "two"]


def test_a_file_that_fails_leaves_the_path_as_it_was(tmp_path):
    file = write(tmp_path, "work.py", "def workload():\n    raise ValueError('no')\n")
    before = list(sys.path)
    with pytest.raises(WorkloadError, match="no"):
        loading.load(f"{file}:workload")
    with pytest.raises(UsageError, match="has no function"):
        loading.load(f"{file}:other")
    assert sys.path == before


def test_data_functions_import_their_neighbours_inside_too(tmp_path):
    write(tmp_path, "hw_near_data.py", "ROWS = [1]")
    file = write(tmp_path, "data.py", "def data():\n    import hw_near_data\n    return {'validation': hw_near_data.ROWS}\n")
    assert loading._fields(f"{file}:data") == {"validation": [1]}
