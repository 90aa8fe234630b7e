"""The shape of a proof to take away (`vigil.verify.document`), and of what was found when one was checked."""

from typing import Any, Final

Schema = dict[str, Any]

_BASE64: Final[Schema] = {
    "type": "string",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "contentEncoding": "base64",
}
_MANY: Final[Schema] = {"type": "array", "items": _BASE64}
_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}


def _object(**members: Schema) -> Schema:
    return {
        "type": "object",
        "properties": members,
        "required": sorted(members),
        "additionalProperties": False,
    }


def _array(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


_ITEM: Final = _object(place=_NUMBER, key=_BASE64, number=_NUMBER, leaf=_BASE64, path=_MANY)
_CENSUS: Final = _object(index=_NUMBER, items={**_array(_ITEM), "maxItems": 2})

PROOF: Final[Schema] = _object(
    vigil_evidence={"const": 1},
    trust_domain=_TEXT,
    checkpoint=_TEXT,
    consistency=_array(_object(checkpoint=_TEXT, path=_MANY)),
    records=_array(
        _object(
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
    subjects=_array(
        _object(
            subject=_TEXT,
            first=_NUMBER,
            leaves=_MANY,
            census={"anyOf": [_CENSUS, {"type": "null"}]},
        )
    ),
)

PROOF_CHECKED: Final[Schema] = _object(
    holds={"type": "boolean"},
    findings=_array(
        _object(
            property=_TEXT,
            holds={"type": ["boolean", "null"]},
            sentence=_TEXT,
            index={"type": ["integer", "null"]},
        )
    ),
    not_proved=_array(_TEXT),
)
