"""The page about policy says what the policy does."""

import importlib.util

from tests.support.opa import ROOT

SCRIPT = ROOT / "deploy" / "tools" / "policy_doc.py"


def test_the_generated_parts_of_the_page_are_current() -> None:
    spec = importlib.util.spec_from_file_location("policy_doc", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text()
    assert script.render(page) == page, "run deploy/tools/policy_doc.py"
