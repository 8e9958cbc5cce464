"""What the files beside the code say must agree with one another."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version_everywhere():
    stated = PROJECT["project"]["version"]
    assert version("bayesgmm") == stated
    assert f"\nversion: {stated}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"[{stated}]" in (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")


def test_constraints_are_pins_and_name_no_host():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9.-]+==[^ ]+( ; .*)?", line)
        assert "://" not in line
