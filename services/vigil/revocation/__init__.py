"""Revocations: their gapless chain, its signed heads, how they reach gateways, and how far they have come."""
