"""Device models and profiles, firmware builds, artifacts by digest, baselines and SBOMs."""
