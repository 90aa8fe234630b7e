"""`vigil demo`: every promise of Vigil, shown on real processes and simulated pumps."""
