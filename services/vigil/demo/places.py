"""The names of the demonstration's world."""

OPERATOR = "operator"
MAKER = "aria-medical"
HOSPITALS = "northern-hospitals"
MODEL = "aria-3000"
GTIN = "09504000059118"
HOSTILE_SITE, CUT_SITE = 2, 3
"""Places in the list of sites: behind the captured gateway, and behind the wire that is cut."""
