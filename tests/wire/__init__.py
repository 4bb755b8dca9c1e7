"""Tests of ``penstock.wire``."""
