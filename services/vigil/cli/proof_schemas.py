"""The shape of a proof to take away (`vigil.verify.document`), and of what was found when one was checked."""

from typing import Final

from vigil.cli.schema_words import FLAG, MAYBE_FLAG, MAYBE_NUMBER, TEXT, Schema, items, maybe, shape

_BASE64: Final[Schema] = {
    "type": "string",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "contentEncoding": "base64",
}
_MANY: Final[Schema] = {"type": "array", "items": _BASE64}
_NUMBER: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}


_ITEM: Final = shape(place=_NUMBER, key=_BASE64, number=_NUMBER, leaf=_BASE64, path=_MANY)
_CENSUS: Final = shape(index=_NUMBER, items={**items(_ITEM), "maxItems": 2})

PROOF: Final[Schema] = shape(
    vigil_evidence={"const": 1},
    trust_domain=TEXT,
    checkpoint=TEXT,
    consistency=items(shape(checkpoint=TEXT, path=_MANY)),
    records=items(
        shape(
            index=_NUMBER,
            leaf=_BASE64,
            statement=_BASE64,
            chain=_MANY,
            bodies=_MANY,
            recorded=_BASE64,
            recorded_path=_MANY,
            inclusion_path=_MANY,
        )
    ),
    subjects=items(
        shape(
            subject=TEXT,
            first=_NUMBER,
            leaves=_MANY,
            census=maybe(_CENSUS),
        )
    ),
)

PROOF_CHECKED: Final[Schema] = shape(
    holds=FLAG,
    findings=items(
        shape(
            property=TEXT,
            holds=MAYBE_FLAG,
            sentence=TEXT,
            index=MAYBE_NUMBER,
        )
    ),
    not_proved=items(TEXT),
)
