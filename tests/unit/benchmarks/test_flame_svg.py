"""The flame graph: proportions, names, and nothing of the machine that it was drawn on."""

from xml.etree import ElementTree as ET

from tests.benchmarks.flame_parts import markdown, parts_of
from tests.benchmarks.flame_svg import WIDTH, stacks_of, svg

_START = "_run_module_as_main (<frozen runpy>:198);main (/home/me/vigil/services/vigil/gateway/__main__.py:9)"
_READ = "read (/home/me/.venv/lib/python3.11/site-packages/grpc/aio/_call.py:{line})"
RAW = (
    f"{_START};{_READ.format(line=3)} 30\n"
    f"{_START};{_READ.format(line=4)};verify<T> (vigil/core/keys.py:1) 10\n"
    "a line that is none of its own\n"
)


def test_lines_of_one_function_are_one_call_and_the_start_is_left_out() -> None:
    assert stacks_of(RAW.splitlines()) == {
        ("read grpc/aio/_call.py",): 30,
        ("read grpc/aio/_call.py", "verify<T> vigil/core/keys.py"): 10,
    }


def test_a_bar_is_as_wide_as_its_part_and_names_no_path_of_the_machine() -> None:
    drawn = svg("gateway & others", stacks_of(RAW.splitlines()))
    assert "/home" not in drawn
    root = ET.fromstring(drawn)
    bars = root.findall("{*}g")
    widths = {
        bar.findtext("{*}title", "").partition(" ")[0]: float(bar.find("{*}rect").attrib["width"])  # type: ignore[union-attr]
        for bar in bars
    }
    assert widths == {"read": WIDTH, "verify<T>": WIDTH / 4}


def test_no_samples_are_an_empty_picture() -> None:
    assert ET.fromstring(svg("nothing", {})).findall("{*}g") == []


def test_a_sample_counts_for_the_innermost_call_of_a_known_kind() -> None:
    stacks = {
        ("take vigil/gateway/receipts.py", "verify vigil/core/keys.py", "loads <frozen>"): 3,
        ("take vigil/gateway/receipts.py", "sleep asyncio/tasks.py"): 2,
        ("take vigil/gateway/receipts.py",): 4,
        ("nobody knows",): 1,
    }
    shares = parts_of(stacks)
    assert shares == {"signatures": 0.3, "event loop": 0.2, "the rooms' own": 0.4, "other": 0.1}
    assert parts_of({}) == {}
    table = markdown({"gateway": {"signatures": 0.5, "other": 0.25}, "pumps": {"signatures": 1.0}})
    assert table[0].startswith("| ms of CPU a command | gateway | pumps | in all |")
    assert table[2].startswith("| signatures | 0.50 | 1.00 | 1.50 |")
    assert table[-1] == "| in all | 0.75 | 1.00 | 1.75 | |"
