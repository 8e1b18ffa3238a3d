"""Scorers: one a file, one paper a file; larger is always more suspicious."""
