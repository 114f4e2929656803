"""Targets: device names, the wire."""

from __future__ import annotations

import json

import pytest

from hwprune.records import target as targets


@pytest.mark.parametrize(
    ("profile", "name", "fits"),
    [
        ("a100", "NVIDIA A100-SXM4-80GB", True), ("a100", "NVIDIA A100 80GB PCIe", True), ("a100-40", "NVIDIA A100-SXM4-40GB", True),
        ("a100-40", "NVIDIA A100 80GB PCIe", False), ("l4", "NVIDIA L4", True), ("l4", "NVIDIA L40S", False), ("l40s", "NVIDIA L40S", True),
        ("a10", "NVIDIA A10", True), ("a10", "NVIDIA A100-PCIE-40GB", False), ("a10", "NVIDIA A10G", False), ("h100", "NVIDIA H100 80GB HBM3", True),
        ("h200", "NVIDIA H200", True), ("h100", "NVIDIA H200", False), ("t4", "Tesla T4", True), ("rtx-4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False), ("orin", "Orin (nvgpu)", True), ("graviton", "Neoverse-V1", True),
        ("cpu", "whatever", True), ("b200", "NVIDIA B200", True),
    ],
)  # fmt: skip
def test_device_names_as_drivers_report_them(profile, name, fits):
    assert targets.load(profile).matches(name) is fits


def test_target_survives_the_wire(device):
    assert targets.Target.from_json(json.loads(json.dumps(device.to_json()))) == device
