"""Tests mirror the modules of ``src/penstock``."""
