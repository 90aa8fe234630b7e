"""Decisions: facts, Rego, permits."""
