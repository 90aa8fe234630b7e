"""The transparency log: one append-only record of every statement that matters, with proofs."""
