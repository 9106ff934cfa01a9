"""Tokens that any other program made of the audit's rows: compared as a framework's are; a wrong line is refused by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pipeline.cli.main import main
from pipeline.cli.schemas import schema_of
from pipeline.core.errors import UserError
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat
from pipeline.handover.audit import Asked, audit, json_text, rows_of
from pipeline.handover.cases import CASES, case_conversations
from pipeline.handover.records import SettingAudit
from pipeline.handover.rows import AuditRow
from pipeline.handover.tokens import read_tokens
from pipeline.handover.words import audit_page, audit_text
from pipeline.model.load import load_data_tokenizer
from pipeline.settings import Profile, load_profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("embedded", ["model.max_seq_length=1024"])


@pytest.fixture(scope="module")
def tokenizer(profile: Profile) -> Any:
    return load_data_tokenizer(profile.model)


@pytest.fixture(scope="module")
def rows(profile: Profile, tokenizer: Any) -> dict[str, list[AuditRow]]:
    return rows_of(case_conversations(), ChatFormat(tokenizer), profile)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(rows: list[AuditRow]) -> list[dict[str, Any]]:
    return [{"input_ids": row.examples[-1].input_ids, "labels": row.examples[-1].labels} for row in rows]


def compare(profile: Profile, path: Path, folder: Path | None = None) -> SettingAudit:
    (found,) = audit(profile, Asked({}, cases=True, tokens=path, folder=folder)).settings
    return found


def test_our_own_tokens_are_equal(profile: Profile, rows: dict[str, list[AuditRow]], tmp_path: Path) -> None:
    made = [row | {"attention_mask": [1] * len(row["labels"])} for row in ours(rows["answers"])]
    found = compare(profile, write(tmp_path / "mine.jsonl", made))
    assert (found.framework, found.setting, found.form, found.error) == ("tokens", "mine.jsonl", "answers", "")
    assert found.equal_rows == len(found.rows) == len(rows["answers"]) > len(CASES)
    assert found.equal_loss_tokens == found.loss_tokens == found.framework_loss_tokens > 0


def test_a_line_may_be_a_conversation(profile: Profile, rows: dict[str, list[AuditRow]], tmp_path: Path) -> None:
    found = compare(profile, write(tmp_path / "mine.jsonl", ours(rows["conversations"])))
    assert found.form == "conversations" and len(found.rows) == len(CASES)
    equal = {row.source for row in found.rows if row.equal}
    assert equal == {row.source for row in rows["conversations"] if len(row.examples) == 1}  # the others lack answers


def test_a_program_that_masks_nothing(
    profile: Profile, tokenizer: Any, rows: dict[str, list[AuditRow]], tmp_path: Path
) -> None:
    """It reads the rows that the audit writes, and trains on all of each text."""
    assert audit(profile, Asked({}, cases=True, folder=tmp_path / "rows")).settings == []
    form, made = ChatFormat(tokenizer), []
    for line in (tmp_path / "rows" / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"id", "messages", "tools", "mode"}  # and not our tokens
        text = tokenizer.apply_chat_template(row["messages"], tools=row["tools"] or None, tokenize=False)
        (ids,) = form.encode([text])
        made.append({"input_ids": ids, "labels": ids})
    assert len((tmp_path / "rows" / "rows_answers.jsonl").read_text().splitlines()) == len(rows["answers"])
    whole = audit(profile, Asked({}, cases=True, tokens=write(tmp_path / "all.jsonl", made)))
    (found,) = whole.settings
    assert found.equal_rows == 0 and found.framework_loss_tokens > found.loss_tokens
    kinds = {f.kind for row in found.rows if row.source == "non-thinking, one turn" for f in row.findings}
    assert {"loss_on_prompt", "empty_block_in_loss"} <= kinds
    Draft202012Validator(schema_of("audit")).validate(json.loads(json_text(whole)))
    text = audit_text(whole, colour=False)
    assert "=== tokens, all.jsonl: tokens that another program made; a row is a conversation\n0 of 8 rows equal" in text
    assert "<h2>tokens, all.jsonl</h2>" in audit_page(whole)


def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows are written; a program makes tokens of them; they are compared; a wrong line ends with its number."""
    words = ["data", "audit", "--cases", "--set", "model.max_seq_length=1024"]
    assert main(words) == 2 and "--framework NAME or --tokens FILE" in capsys.readouterr().err
    folder = tmp_path / "rows"
    assert main([*words, "--output-dir", str(folder)]) == 0
    lines = (folder / "rows_answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads((folder / "audit.json").read_text())["settings"] == []
    made = write(tmp_path / "made.jsonl", [{"input_ids": [5, 6], "labels": [-100, 6]}] * len(lines))
    capsys.readouterr()
    assert main([*words, "--tokens", str(made), "--json"]) == 0
    (setting,) = json.loads(capsys.readouterr().out)["settings"]
    assert setting["setting"] == "made.jsonl" and setting["equal_rows"] == 0 and len(setting["rows"]) == len(lines)
    made.write_text(made.read_text() + "{}\n")
    assert main([*words, "--tokens", str(made)]) == 2
    assert f"made.jsonl:{len(lines) + 1} needs the form" in capsys.readouterr().err


GOOD = '{"input_ids": [5, 6], "labels": [-100, 6]}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\ud800", "is not valid JSON"),
        ("[1, 2]", "needs the form"),
        ('{"input_ids": [5]}', "needs the form"),
        ('{"input_ids": 5, "labels": [5]}', "input_ids has to be a list of whole numbers"),
        ('{"input_ids": [5], "labels": [5.0]}', "labels has to be a list of whole numbers"),
        ('{"input_ids": [true], "labels": [1]}', "input_ids has to be a list of whole numbers"),
        ('{"input_ids": [[5]], "labels": [[5]]}', "input_ids has to be a list of whole numbers"),
        ('{"input_ids": [5, 6], "labels": [5]}', "has 2 input_ids and 1 labels"),
        ('{"input_ids": [], "labels": []}', "has 0 input_ids and 0 labels"),
        ('{"input_ids": [5, 99], "labels": [-100, 99]}', r"input_ids\[1\] is 99; .* ids 0 to 9"),
        ('{"input_ids": [-1], "labels": [-100]}', r"input_ids\[0\] is -1"),
        (
            '{"input_ids": [5, 6, 7], "labels": [-100, 7, -100]}',
            r"labels\[1\] is 7, and input_ids\[1\] is 6. .*shifted",
        ),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD + "\n" + line + "\n" + GOOD).encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=rf"rows.jsonl:3.* {said}"):
        read_tokens(path, 10)
    path.write_text(GOOD + "\n" + GOOD)
    assert [list(row.labels) for row in read_tokens(path, 10)] == [[IGNORE_INDEX, 6]] * 2


def test_a_wrong_file(profile: Profile, rows: dict[str, list[AuditRow]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no.jsonl cannot be read: No such file"):
        compare(profile, tmp_path / "no.jsonl")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        compare(profile, tmp_path)
    few = write(tmp_path / "few.jsonl", ours(rows["answers"][:5]))
    with pytest.raises(UserError, match="few.jsonl has 5 rows. .* 8 conversations, .* 13"):
        compare(profile, few)
