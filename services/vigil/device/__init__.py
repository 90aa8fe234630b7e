"""The device's side: its identity, its log, the checks it makes before it acts, and a simulated pump."""
