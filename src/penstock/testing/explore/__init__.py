"""The explorer: every path of a few actions through small configurations of a machine, against a readable model."""
