"""Signed statements: what they say (`bodies`), how a body is encoded (`schema`), how it is signed (`envelope`)."""
