"""The tables of attestation, step by step."""
