"""The published vectors are current, and this implementation reads them as they say."""

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from vigil.core import cose, merkle
from vigil.core.census import Item, Placed, is_absent, is_placed, subject_key
from vigil.core.digest import sha256
from vigil.core.keys import key_thumbprint
from vigil.core.revocations import EMPTY_CHAIN, chain_hash
from vigil.core.statements.envelope import StatementKind, read_any
from vigil.core.statements.schema import encode_body
from vigil.errors import Reason, Refused

FOLDER = Path(__file__).parents[2] / "docs" / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def test_the_files_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, text in script.render().items():
        assert (FOLDER / name).read_text() == text, f"{name} is not current: run make vectors"


def test_every_statement_reads_verifies_and_has_its_digest() -> None:
    vectors = load("statements.json")
    key = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), base64.b64decode(vectors["public_key"])
    )
    assert key_thumbprint(key).hex() == vectors["key_thumbprint"]
    assert {item["kind"] for item in vectors["statements"]} == set(StatementKind)
    for item in vectors["statements"]:
        statement = read_any(base64.b64decode(item["statement"]))
        assert statement.kind == item["kind"]
        assert statement.sign1.content_type == item["content_type"]
        assert encode_body(statement.body) == base64.b64decode(item["payload"])
        assert statement.sign1.to_be_signed == base64.b64decode(item["sig_structure"])
        assert statement.digest.hex() == item["digest"] == sha256(statement.sign1.to_be_signed).hex()
        assert cose.check_signature(statement.sign1, key)


@pytest.mark.parametrize("case", load("malformed.json"), ids=lambda case: case["what"])
def test_what_is_malformed_is_refused(case: dict[str, str]) -> None:
    data = base64.b64decode(case["statement"])
    vectors = load("statements.json")
    key = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), base64.b64decode(vectors["public_key"])
    )
    try:
        statement = read_any(data)
    except Refused as refusal:
        assert refusal.reason is Reason.STATEMENT_MALFORMED  # noqa: PT017 - the other way out is below
        assert case["reason"] == "STATEMENT_MALFORMED"
    else:
        assert case["reason"] == "SIGNATURE_INVALID"
        assert not cose.check_signature(statement.sign1, key)


def test_trees_and_paths() -> None:
    for tree in load("merkle.json"):
        hashes = [merkle.leaf_hash(base64.b64decode(item)) for item in tree["leaves"]]
        root = merkle.tree_root(hashes)
        assert root.hex() == tree["root"]
        inclusion = tree["inclusion"]
        assert merkle.verify_inclusion(
            leaf=hashes[inclusion["index"]],
            index=inclusion["index"],
            size=len(hashes),
            path=[bytes.fromhex(item) for item in inclusion["path"]],
            root=root,
        )
        consistency = tree["consistency"]
        assert merkle.verify_consistency(
            old_size=consistency["old_size"],
            new_size=len(hashes),
            old_root=bytes.fromhex(consistency["old_root"]),
            new_root=root,
            path=[bytes.fromhex(item) for item in consistency["path"]],
        )


def test_censuses() -> None:
    for tree in load("census.json"):
        root, subjects = bytes.fromhex(tree["root"]), tree["subjects"]
        for item in tree["items"]:
            assert is_placed(placed(item), subjects=subjects, root=root)
        absent = tree["absent"]
        neighbours = [placed(item) for item in absent["neighbours"]]
        assert is_absent(subject_key(absent["subject"]), neighbours, subjects=subjects, root=root)
        assert len(neighbours) == min(subjects, 1 if absent_at_an_end(neighbours, subjects) else 2)


def absent_at_an_end(neighbours: list[Placed], subjects: int) -> bool:
    return len(neighbours) == 1 and neighbours[0].place in (0, subjects - 1)


def placed(item: dict[str, Any]) -> Placed:
    one = Item(bytes.fromhex(item["key"]), item["number"], bytes.fromhex(item["leaf"]))
    assert one.encode() == base64.b64decode(item["data"])
    return Placed(item["place"], one, tuple(bytes.fromhex(node) for node in item["path"]))


def test_the_chain_of_revocations() -> None:
    previous = EMPTY_CHAIN
    for step in load("revocations.json"):
        digests = [bytes.fromhex(item) for item in step["digests"]]
        previous = chain_hash(previous, step["epoch"], digests)
        assert previous.hex() == step["chain"]
