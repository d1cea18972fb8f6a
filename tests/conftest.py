"""What all tests share: the marker `needs`, and "not here" for tests that this machine's KVM can't run."""

from __future__ import annotations

from harness.needs import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_report_header,
    pytest_report_teststatus,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from hypothesis import settings

# How long an example takes is the machine's business, which is shared and noisy.
settings.register_profile("pykvm", deadline=None)
settings.load_profile("pykvm")

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_report_teststatus",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
]
