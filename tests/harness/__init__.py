"""Runs every test wherever it can run, and makes one report of it.

::

    lane 1   unit    tests/unit
             native  tests/kvm on this machine's KVM, if it has one
             lab     tests/lab and tests/lessons, which boot labs of their own
    lane 2   amd     tests/kvm in the AMD lab, all of them
             intel   in the Intel lab those that the AMD lab could not run

    runs.py ── one JUnit file a run ──► junit.py ──► merge.py ──► report.py

A KVM test says what it needs (needs.py); where the KVM lacks it, the test is "not here", which is no pass.
A test that ran nowhere fails the build, and so does a run that did not happen.

    python -m harness          all of it; the Makefile's `make test` (with PYTHONPATH=tests)
    python -m harness --help   fewer places, other time limits
"""
