"""Fuzz targets, one for each decoder: line 1 of each says what must hold, its errors are listed where they are caught.

Seeded random bytes and mutations of sound messages; a failure names its seed and prints its input. Short in ``make
test``, long in ``make nightly``.
"""
