"""Attestation: challenges, appraisal, and the live state of every device."""
