"""The flame graph: proportions, names, and nothing of the machine that it was drawn on."""

from xml.etree import ElementTree as ET

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
