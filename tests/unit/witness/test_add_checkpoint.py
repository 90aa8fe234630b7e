"""Every answer of `add-checkpoint` (C2SP tlog-witness), over HTTP, from a witness with a real memory."""

import asyncio
import contextlib
import sqlite3
import stat
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.stack import eventually
from tests.unit.witness.conftest import NAME, RunningWitness, SmallLog, request
from vigil.rpc import plain_http
from vigil.storage import assert_migrations_match
from vigil.witness import store
from vigil.witness.domain import MAX_BODY_BYTES, SIZE_TYPE
from vigil.witness.founding import NoWitnessError, found, open_witness

pytestmark = pytest.mark.holds("insider-evidence")


def test_migrations_lead_to_the_tables() -> None:
    assert_migrations_match(store.METADATA, "vigil.witness.migrations")


async def test_what_follows_is_cosigned(witness: RunningWitness, log: SmallLog) -> None:
    status, _, line = await witness.post(log.request(0))
    assert status == 200
    cosignature = witness.cosigned(log.text(), line)
    assert (cosignature.name, cosignature.time) == (NAME, witness.clock.now() // 1000)
    log.grow("four", "five")
    status, _, line = await witness.post(log.request(3))
    assert status == 200
    witness.cosigned(log.text(), line)


async def test_the_same_again_is_cosigned_again(witness: RunningWitness, log: SmallLog) -> None:
    await witness.post(log.request(0))
    witness.clock.advance(60)
    status, _, line = await witness.post(log.request(3))
    assert status == 200
    assert witness.cosigned(log.text(), line).time == witness.clock.now() // 1000


async def test_time_never_goes_back(witness: RunningWitness, log: SmallLog) -> None:
    first = witness.clock.now() // 1000
    await witness.post(log.request(0))
    witness.clock.set_now(witness.clock.now() - 3_600_000)
    log.grow("four")
    _, _, line = await witness.post(log.request(3))
    assert witness.cosigned(log.text(), line).time == first


async def test_another_old_size_is_told_the_one_that_is_known(witness: RunningWitness, log: SmallLog) -> None:
    assert await witness.post(log.request(2)) == (409, SIZE_TYPE, "0\n")
    await witness.post(log.request(0))
    log.grow("four")
    assert await witness.post(log.request(0)) == (409, SIZE_TYPE, "3\n")
    assert await witness.post(log.request(2)) == (409, SIZE_TYPE, "3\n")
    assert await witness.post(log.request(4)) == (409, SIZE_TYPE, "3\n")


async def test_it_never_goes_back(witness: RunningWitness, log: SmallLog) -> None:
    await witness.post(log.request(0))
    assert await witness.post(log.request(0, 2)) == (409, SIZE_TYPE, "3\n")
    assert (await witness.post(log.request(2, 2)))[0] == 409
    await witness.stop()
    await witness.start()
    assert await witness.post(log.request(0, 2)) == (409, SIZE_TYPE, "3\n")


async def test_another_root_at_the_size_known_is_a_conflict(witness: RunningWitness, log: SmallLog) -> None:
    other = log.fork(2).grow("another third")
    await witness.post(log.request(0))
    assert await witness.post(other.request(3)) == (
        409,
        "text/plain; charset=utf-8",
        "The log had another root at this size.\n",
    )
    assert held_against(witness) == [(request(3, [], other.note()).decode(), log.note())]


async def test_a_fork_that_grew_has_no_proof(witness: RunningWitness, log: SmallLog) -> None:
    other = log.fork(2).grow("another third", "and more")
    await witness.post(log.request(0))
    assert (await witness.post(other.request(3)))[0] == 422
    assert (await witness.post(other.request(3)))[0] == 422
    assert len(held_against(witness)) == 1
    assert (await witness.post(log.grow("four").request(3)))[0] == 200


async def test_a_wrong_proof_is_unprocessable(witness: RunningWitness, log: SmallLog) -> None:
    assert (await witness.post(request(0, [bytes(32)], log.note())))[0] == 422
    await witness.post(log.request(0))
    log.grow("four", "five")
    proof = log.proof(3)
    for wrong in ([], proof[:-1], [*proof, bytes(32)], proof[::-1], [bytes(32), *proof[1:]]):
        assert (await witness.post(request(3, wrong, log.note())))[0] == 422
    assert (await witness.post(request(3, proof, log.note())))[0] == 200
    assert (await witness.post(request(5, [bytes(32)], log.note())))[0] == 422


async def test_an_unknown_log_is_not_found(witness: RunningWitness, log: SmallLog) -> None:
    other = SmallLog(log.leaves, log.key, "other.test/evidence")
    assert (await witness.post(other.request(0)))[0] == 404


async def test_an_unknown_key_is_forbidden(witness: RunningWitness, log: SmallLog) -> None:
    other = SmallLog(log.leaves)
    assert (await witness.post(other.request(0)))[0] == 403
    tampered = log.note().replace("\n3\n", "\n2\n")
    assert (await witness.post(request(0, [], tampered)))[0] == 403
    assert await witness.post(log.request(1)) == (409, SIZE_TYPE, "0\n"), "nothing was remembered"


async def test_signatures_of_strangers_beside_the_logs_are_passed_over(
    witness: RunningWitness, log: SmallLog
) -> None:
    stranger = SmallLog(log.leaves).note().rpartition("\n\n")[2]
    status, _, line = await witness.post(request(0, [], log.note() + stranger))
    assert status == 200
    witness.cosigned(log.text(), line)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0",
        b"old 0\n\n",
        b"\xff\xfe",
        b"old 00\n\n",
        b"old -1\n\n",
        b"old 9999999999999999999\n\n",
        b"OLD 0\n\n",
        b"old  0\n\n",
        b"old 0 \n\n",
        b"old 0\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_malformed(witness: RunningWitness, log: SmallLog, body: bytes) -> None:
    assert (await witness.post(body))[0] == 400
    # The head alone is at fault: with the right one, the same note is taken.
    if body.endswith(b"\n"):
        assert (await witness.post(body + log.note().encode()))[0] == (200 if body == b"old 0\n\n" else 400)


async def test_malformed_proofs_notes_and_sizes(witness: RunningWitness, log: SmallLog) -> None:
    note = log.note()
    for line in ("AAAA", "*", "A" * 44, " " + "A" * 43 + "="):
        assert (await witness.post(f"old 0\n{line}\n\n{note}".encode()))[0] == 400, line
    assert (await witness.post(request(0, [bytes(32)] * 64, note)))[0] == 400
    assert (await witness.post(request(4, [], note)))[0] == 400
    for wrong in (note[:-1], note.replace("\n3\n", "\n03\n"), note.replace("\n\n", "\n"), log.text()):
        assert (await witness.post(request(0, [], wrong)))[0] == 400


async def test_too_long_and_elsewhere(witness: RunningWitness, log: SmallLog) -> None:
    assert (await witness.post(b"x" * (MAX_BODY_BYTES + 1)))[0] == 413
    assert (await witness.post(log.request(0), path="/add-entry"))[0] == 404
    assert (await witness.post(b"", method="GET"))[0] == 405


async def test_of_two_forks_at_once_one_is_cosigned(witness: RunningWitness, log: SmallLog) -> None:
    bodies = [log.fork(2).grow(f"fork {number}").request(0) for number in range(16)]
    answers = await asyncio.gather(*(witness.post(body) for body in bodies))
    assert sorted(status for status, _, _ in answers) == [200] + [409] * 15


async def test_key_and_memory_stay_together(witness: RunningWitness, log: SmallLog, tmp_path: Path) -> None:
    key, memory = tmp_path / "witness.key", tmp_path / "witness.db"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    await witness.post(log.request(0))
    await witness.stop()
    with pytest.raises(NoWitnessError, match="another key, or to another name"):
        open_witness(key, memory, name="witness.test/other")
    kept = memory.read_bytes()
    memory.unlink()
    with pytest.raises(NoWitnessError, match="lost its memory"):
        open_witness(key, memory, name=NAME)
    with pytest.raises(NoWitnessError, match="what is left of one"):
        found(key, memory, name=NAME, generate=Ed25519PrivateKey.generate)
    found(tmp_path / "b" / "key", tmp_path / "b" / "db", name=NAME, generate=Ed25519PrivateKey.generate)
    with pytest.raises(NoWitnessError, match="another key"):
        open_witness(key, tmp_path / "b" / "db", name=NAME)
    memory.write_bytes(kept)
    open_witness(key, memory, name=NAME)[1].close()


def held_against(witness: RunningWitness) -> list[tuple[str, str]]:
    """What the witness kept of a log that contradicted itself: the request, and the note it contradicts."""
    with sqlite3.connect(witness.folder / "witness.db") as connection:
        rows = connection.execute("SELECT request, known FROM contradiction ORDER BY id").fetchall()
    connection.close()
    return rows


async def test_so_many_connections_and_no_more(
    witness: RunningWitness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers that only connect use up their own share of descriptors, and not the witness's."""
    monkeypatch.setattr(plain_http, "MAX_CONNECTIONS", 2)
    held = [await asyncio.open_connection("127.0.0.1", witness.port) for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", witness.port)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    for _, one in held:
        one.close()

    async def taken() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            status, _, _ = await witness.post(b"nothing")
            return status == 400
        return False

    await eventually(taken, what="those who left make room")
