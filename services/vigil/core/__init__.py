"""Value types and pure functions that every room shares; imports nothing of Vigil but ``vigil.errors``."""
