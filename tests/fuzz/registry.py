"""All harnesses, family by family."""

from collections.abc import Mapping
from typing import Final

from tests.fuzz import certificates, documents, proofs, servicers, statements, texts, tiles, wire
from tests.fuzz.harness import Harness, named

FAMILIES: Final = (statements, certificates, documents, proofs, texts, tiles, wire, servicers)
HARNESSES: Final[Mapping[str, Harness]] = named(one for family in FAMILIES for one in family.HARNESSES)
