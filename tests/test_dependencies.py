"""Lower bounds leave out versions with known holes, and what is installed is above them."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
REQUIRED = {need.name: need for need in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("pillow", "12.2.0"),  # CVE-2026-59199: crop and paste write outside of their memory.
        ("pillow", "12.1.0"),  # CVE-2026-25990: reading PSD does.
        ("pillow", "11.2.1"),  # CVE-2025-48379: writing DDS does.
        ("torch", "2.5.1"),  # CVE-2025-32434: torch.load with weights_only runs code.
        ("jinja2", "3.1.5"),  # CVE-2025-27516: a way out of the sandbox.
        ("filelock", "3.20.2"),  # CVE-2026-22701: a lock follows a link that is put in its place.
        ("pyarrow", "14.0.0"),  # CVE-2023-47248: reading parquet runs code.
        ("pyyaml", "5.3.1"),  # CVE-2020-14343: loading runs code.
        ("transformers", "4.47.1"),  # CVE-2024-11392 and others: loading runs code.
    ],
)
def test_versions_with_known_holes_are_left_out(name, version):
    assert not REQUIRED[name].specifier.contains(version)
    assert REQUIRED[name].specifier.contains(importlib.metadata.version(name))
