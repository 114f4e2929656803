"""Memory limits of containers, read from files as the kernel writes them."""

from __future__ import annotations

import os

import pytest

from hwprune.common.memory import memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GB = 10**9


def world(root, cgroup, limits):
    """``limits``: path below sys/fs/cgroup -> content."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, content in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "1000000000\n"}, GB),  # a container with a name space of its own
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        (
            "0::/slice/unit\n",
            {"memory.max": "max\n", "slice/memory.max": "2000000000\n", "slice/unit/memory.max": "max\n"},
            2 * GB,
        ),
        ("0::/slice/unit\n", {"slice/memory.max": "2000000000\n", "slice/unit/memory.max": "500000000\n"}, GB // 2),
        ("0::/../../host/path\n", {"memory.max": "1000000000\n"}, GB),  # the host's path, seen from inside
        ("5:cpu:/x\n4:memory:/docker/1\n", {"memory/docker/1/memory.limit_in_bytes": "1000000000\n"}, GB),  # version 1
        ("4:memory,cpu:/docker/1\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ("5:cpu:/x\n", {"memory/memory.limit_in_bytes": "1\n"}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path, cgroup, limits, expected):
    assert memory_limit(world(tmp_path, cgroup, limits)) == min(expected, MACHINE)


def test_without_control_groups_it_is_the_machines(tmp_path):
    assert memory_limit(tmp_path) == MACHINE


def test_a_candidate_gets_three_quarters_of_it(monkeypatch):
    from hwprune.searching import setup

    monkeypatch.setattr(setup, "memory_limit", lambda: 4 * GB)
    assert setup.three_quarters_of_memory() == 3 * GB
