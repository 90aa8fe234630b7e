"""Vigil: a zero-trust control plane for fielded medical devices."""

__version__ = "0.1.0"
