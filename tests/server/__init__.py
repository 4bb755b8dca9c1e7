"""Tests of ``penstock.server``."""
