"""What the Makefile says of packages."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_compiled_by_set_up_can_be_imported() -> None:
    """The import stands in one line: one name that is missing, and nothing behind it is compiled, in silence."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (names,) = re.findall(r"^COMPILED := (.+)$", text, re.MULTILINE)
    modules = [name.strip() for name in names.split(",")]
    assert len(modules) > 10
    assert [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_real_model_writes_thinking_chat_where_there_is_none(tmp_path: Path) -> None:
    def steps(*arguments: str) -> str:
        command = ["make", "--dry-run", "--directory", str(ROOT), "real", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    alone = steps(f"DATA={tmp_path}")
    assert f'--questions "{tmp_path}/chat"' in alone and "--plan" in alone
    assert 'mix.local.thinking_chat=outputs/real_own/chat.thinking/rows.jsonl"' in alone
    assert 'mix.local.chat=outputs/real_own/chat/rows.jsonl"' in alone
    assert f'mix.local.steps={tmp_path}/reasoning"' in alone  # both modes are taught by the same problems
    assert (
        f'mix.local.own_chat={tmp_path}/chat"' in alone and f'mix.local.own_maths_direct={tmp_path}/reasoning"' in alone
    )
    assert "hybrid.fidelity" not in alone and "hybrid.fidelity=0.85" in steps(f"DATA={tmp_path}", "FIDELITY=0.85")
    (tmp_path / "thinking_chat").mkdir()
    given = steps(f"DATA={tmp_path}")
    assert "rehearse" not in given and f'mix.local.thinking_chat={tmp_path}/thinking_chat"' in given
    assert "rehearse" not in steps() and "mix.local" not in steps()
