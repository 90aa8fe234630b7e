import stat
from pathlib import Path

import pytest

from vigil.cli import journal
from vigil.cli.journal import Sent
from vigil.errors import Reason, Refused
from vigil.run.layout import DataFolder

SENT = Sent(
    request_id=bytes(range(16)),
    principal="p-ada",
    device_id="dev-aaaaaaaaaaaaaaaa",
    gateway_id="gw-1",
    action="hold",
    intent=b"the very bytes",
)


def test_what_was_sent_is_found_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    assert journal.find(folder, SENT.request_id) is None
    journal.keep(folder, SENT)
    journal.keep(folder, SENT.with_command(bytes(32)))
    assert journal.find(folder, SENT.request_id) == SENT.with_command(bytes(32))
    (path,) = (tmp_path / "requests").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{}", '{"request_id": "zz"}', "[]"])
def test_a_torn_file_is_not_taken_for_nothing(tmp_path: Path, text: str) -> None:
    folder = DataFolder(tmp_path)
    journal.keep(folder, SENT)
    (path,) = (tmp_path / "requests").iterdir()
    path.write_text(text)
    with pytest.raises(Refused) as caught:
        journal.find(folder, SENT.request_id)
    assert caught.value.reason is Reason.FIELD_INVALID
