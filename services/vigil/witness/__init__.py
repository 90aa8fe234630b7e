"""A witness: sees that a log only grows, says so under its own name, and never takes it back."""
