"""Marks of tests that several files have."""

import os

import pytest

LONG = pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="more of the same: set INDEXTTS_LONG to run it")
