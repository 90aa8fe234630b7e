"""Building and checking: reproducible, current, and strict about negation."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.opa import POLICIES, opa
from vigil.errors import Reason, Refused
from vigil.policy.engine import build as build_command
from vigil.policy.engine.build import build, differences, revision_of, sources
from vigil.policy.engine.bundle import BUNDLE_LIMIT, DEFAULT_BUNDLE, MEMBERS_LIMIT, read_bundle, read_members
from vigil.policy.engine.check import check, negations
from vigil.policy.engine.opa import Opa, OpaFailed, OpaMissing

GOOD = """package vigil.command

default fine := false

fine if input.fine == true

decision := {"allow": fine, "reasons": [], "obligations": []}
"""

GOOD_TEST = """package vigil.command_test

import data.vigil.command

test_fine if command.decision.allow with input as {"fine": true}

test_not_fine if command.decision.allow == false with input as {}
"""


def folder_of(tmp_path: Path, **modules: str) -> Path:
    """A folder of policies with these modules of package vigil.command, by file name."""
    package = tmp_path / "policies" / "vigil" / "command"
    package.mkdir(parents=True)
    for name, text in modules.items():
        (package / f"{name}.rego").write_text(text)
    return tmp_path / "policies"


def test_the_committed_bundle_is_what_the_sources_build_to() -> None:
    assert differences(build(POLICIES, opa()), DEFAULT_BUNDLE.read_bytes()) == []


def test_a_build_is_the_same_byte_for_byte_wherever_it_happens(tmp_path: Path) -> None:
    copy = tmp_path / "somewhere" / "else"
    shutil.copytree(POLICIES, copy)
    for path in copy.rglob("*.rego"):
        path.touch()
    assert build(copy, opa()) == build(POLICIES, opa())


def test_the_bundle_names_no_folder_of_the_machine() -> None:
    members = read_members(DEFAULT_BUNDLE.read_bytes())
    assert b"/vigil/command" not in members["policy.wasm"]
    assert set(members) == {".manifest", "data.json", "policy.wasm"} | {
        name for name in sources(POLICIES) if name.endswith(".rego")
    }


@pytest.mark.holds("policy-editor")
def test_the_revision_is_the_digest_of_the_sources() -> None:
    files = sources(POLICIES)
    assert read_bundle(DEFAULT_BUNDLE.read_bytes()).revision == revision_of(files)
    name = next(iter(files))
    assert revision_of({**files, name: files[name] + b"\n"}) != revision_of(files)
    assert revision_of({"a": b"bc"}) != revision_of({"ab": b"c"})


def test_the_policies_pass_their_checks() -> None:
    assert check(POLICIES, opa()) == []


def test_the_command_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of(tmp_path, good=GOOD, good_test=GOOD_TEST)
    output = tmp_path / "out" / "bundle.tar.gz"
    command = ["--source", str(source), "--output", str(output), "--opa", str(opa().executable)]
    assert build_command.main([*command, "--check"]) == 1
    assert "is missing" in capsys.readouterr().err
    assert build_command.main(command) == 0
    assert build_command.main([*command, "--check"]) == 0
    module = source / "vigil" / "command" / "good.rego"
    module.write_text(GOOD.replace("input.fine ==", "input.finer =="))
    test = source / "vigil" / "command" / "good_test.rego"
    test.write_text(GOOD_TEST.replace('"fine"', '"finer"'))
    capsys.readouterr()
    assert build_command.main([*command, "--check"]) == 1
    told = capsys.readouterr().err
    assert "good.rego differs" in told
    assert "policy.wasm differs" in told


@pytest.mark.holds("policy-editor")
def test_a_policy_that_allows_an_empty_question_is_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(
        tmp_path,
        careless='package vigil.command\n\ndecision := {"allow": true, "reasons": [], "obligations": []}\n',
        careless_test=GOOD_TEST.partition("test_not_fine")[0].rstrip() + "\n",
    )
    output = tmp_path / "bundle.tar.gz"
    command = ["--source", str(source), "--output", str(output), "--opa", str(opa().executable)]
    assert build_command.main(command) == 1
    assert "allows an empty question" in capsys.readouterr().err
    assert not output.exists()


def test_without_opa_the_words_say_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OpaMissing, match="go install"):
        Opa.find(tmp_path / "opa")
    assert build_command.main(["--opa", str(tmp_path / "opa")]) == 1
    assert "go install" in capsys.readouterr().err


@pytest.mark.holds("policy-editor")
@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ({}, "holds no policy"),
        ({"good": GOOD}, "there is no test"),
        ({"good": GOOD + "\nallow if\n", "good_test": GOOD_TEST}, "opa check"),
        ({"good": GOOD + "\nimport data.x\n", "good_test": GOOD_TEST}, "opa check"),
        ({"good": GOOD.replace(" == ", "=="), "good_test": GOOD_TEST}, "not formatted"),
        ({"good": GOOD, "good_test": GOOD_TEST.replace(": true", ": false")}, "test_fine failed"),
        (
            {"good": GOOD, "good_test": GOOD_TEST.replace("test_fine", "todo_test_fine")},
            "failed or was skipped",
        ),
        ({"good": GOOD + "\nother if input.other\n", "good_test": GOOD_TEST}, "good.rego:9 is not covered"),
        ({"good": GOOD + "\nother if not input.other\n", "good_test": GOOD_TEST}, "good.rego:9: 'not'"),
    ],
)
def test_each_check_finds_its_fault(tmp_path: Path, modules: dict[str, str], sentence: str) -> None:
    assert sentence in " ".join(check(folder_of(tmp_path, **modules), opa()))


def test_a_good_policy_passes(tmp_path: Path) -> None:
    assert check(folder_of(tmp_path, good=GOOD, good_test=GOOD_TEST), opa()) == []


FACTS = (
    "package vigil.command\n\ndefault fact := false\n\nfact if input.fact == true\n\nbare if input.bare\n\n"
)


@pytest.mark.parametrize(
    "rule",
    [
        "r if not fact",
        "r if not data.vigil.command.fact",
        "r if { some x in [1]; x == 1; not fact }",
        "r contains 1 if not fact",
        "r := 1 if fact\nelse := 2 if not fact",
        "r := [1 | not fact]",
    ],
)
def test_the_name_of_a_rule_with_a_default_may_be_negated(tmp_path: Path, rule: str) -> None:
    assert _negations(tmp_path, rule) == []


@pytest.mark.parametrize(
    "rule",
    [
        'r if not net.cidr_contains("bad", input.address)',
        "r if not count(input.x) > 1",
        "r if not input.x",
        "r if not input.x == 1",
        "r if not bare",
        "r if not data.vigil.command.bare",
        "r if not data.vigil.config.x",
        "r if not data.vigil.command[input.x]",
        "r if not fact with input as input.x",
        "r if not f(1)\n\nf(x) if x",
        "r if not input.x in [1]",
        "r if { every x in input.xs { not x } }",
        "r if { some x in input.xs; not x }",
        "f(fact) if not fact",
        "r if { fact := input.x; not fact }",
        "r := [1 | not input.x]",
        "r := 1 if fact\nelse := 2 if not bare",
        "r := x if { x := {y: 1 | some y in input.ys; not y.z} }",
    ],
)
def test_nothing_else_may_be_negated(tmp_path: Path, rule: str) -> None:
    assert len(_negations(tmp_path, rule)) == 1


def _negations(tmp_path: Path, rule: str) -> list[str]:
    source = folder_of(tmp_path, module=FACTS + rule + "\n")
    return negations(source, sorted(source.rglob("*.rego")), opa())


def test_a_negation_may_name_a_rule_of_another_file(tmp_path: Path) -> None:
    source = folder_of(tmp_path, facts=FACTS, use="package vigil.command\n\nr if not fact\n")
    assert negations(source, sorted(source.rglob("*.rego")), opa()) == []


def test_what_does_not_compile_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(OpaFailed):
        build(folder_of(tmp_path, broken="package vigil.command\n\nallow if\n"), opa())
    with pytest.raises(OpaFailed):
        build(tmp_path / "nowhere", opa())


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def link() -> tarfile.TarInfo:
    entry = tarfile.TarInfo(".manifest")
    entry.type = tarfile.SYMTYPE
    entry.linkname = "/etc/passwd"
    return entry


@pytest.mark.holds("policy-editor")
@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no tar",
        gzip.compress(b"no tar"),
        DEFAULT_BUNDLE.read_bytes()[:-20_000],
        b"\0" * (BUNDLE_LIMIT + 1),
        tar_of((link(), b"")),
        tar_of((tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2")),
        tar_of((tarfile.TarInfo("a"), b"\0" * (MEMBERS_LIMIT + 1))),
        tar_of((tarfile.TarInfo(".manifest"), b'{"revision":"x"}')),
        tar_of(
            (tarfile.TarInfo(".manifest"), b'{"revision":"x"}'),
            (tarfile.TarInfo("policy.wasm"), b""),
            (tarfile.TarInfo("data.json"), b"{}"),
        ),
        tar_of(
            (tarfile.TarInfo(".manifest"), b"[" * 100_000),
            (tarfile.TarInfo("policy.wasm"), b""),
            (tarfile.TarInfo("data.json"), b"{}"),
        ),
    ],
    ids=[
        "empty",
        "text",
        "gzip",
        "cut",
        "large",
        "link",
        "twice",
        "bomb",
        "parts missing",
        "revision",
        "nested",
    ],
)
def test_what_is_no_bundle_is_undefined(packed: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        read_bundle(packed)
    assert refusal.value.reason is Reason.POLICY_UNDEFINED
