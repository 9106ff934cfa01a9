"""Retrieval: what a folder becomes, what is found, what fits into a prompt, and the command on a tiny run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.export import passages as module
from pipeline.export.ask import HEADING, fit, with_passages
from pipeline.export.passages import Index, Passage, index_folder


def words(text: str) -> int:
    return len(text.split())


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def sources(index: Index) -> list[str]:
    return [passage.source for passage in index.passages]


def test_paragraphs_with_their_lines(tmp_path: Path) -> None:
    write(tmp_path, a="# Head\n\n\nOne two.\nThree.\n\nFour.\n", sub__b="\n\n  Five.  ", c="\n# Alone\n\n")
    index = index_folder(tmp_path, words, 50)
    assert sources(index) == ["a.txt, lines 1-5", "a.txt, line 7", "c.txt, line 2", "sub/b.txt, line 3"]
    assert index.passages[0].text == "# Head\n\n\nOne two.\nThree."


def test_a_long_paragraph_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = ["a b c", "d e f g", "h i. j k! l m n o p q r s", "t"]
    index = index_folder(write(tmp_path, a="\n".join(lines)), words, 4)
    assert all(words(passage.text) <= 4 for passage in index.passages)
    assert " ".join(passage.text for passage in index.passages).split() == " ".join(lines).split()
    for passage in index.passages:  # the lines named hold the words
        named = " ".join(lines[passage.first - 1 : passage.last]).split()
        assert set(passage.text.split()) <= set(named), passage


def test_what_cannot_be_cut_is_named(tmp_path: Path) -> None:
    index = index_folder(write(tmp_path, a="short\n\n" + "y" * 90), len, 20)
    assert sources(index) == ["a.txt, line 1"]
    assert [(item.source, item.reason) for item in index.skipped] == [
        ("a.txt, line 3", "90 tokens without a place to cut; 20 are the limit")
    ]


def test_files_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, good="text", empty=" \n", large="x " * 50)
    (tmp_path / "bin").write_bytes(b"ab\0c")
    (tmp_path / "latin").write_bytes("größe".encode("latin-1"))
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("secret")
    (tmp_path / "link").symlink_to("/etc/hostname")
    monkeypatch.setattr(module, "LARGEST", 60)
    index = index_folder(tmp_path, words, 50)
    assert [passage.text for passage in index.passages] == ["text", "marked"]
    assert {item.source: item.reason.split(" (")[0] for item in index.skipped} == {
        "bin": "no text",
        "empty.txt": "empty",
        "large.txt": "larger than 0 MiB",
        "latin": "no UTF-8",
    }


def test_folders_without_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        index_folder(tmp_path / "none", words, 50)
    with pytest.raises(UserError, match="There is no text in .*, it is empty"):
        index_folder(tmp_path, words, 50)
    (tmp_path / "photo").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"There is no text in .* \(photo: no text \(binary\)\)"):
        index_folder(tmp_path, words, 50)


def test_a_python_without_full_text_search(monkeypatch: pytest.MonkeyPatch) -> None:
    class Database:
        def execute(self, words: str) -> None:
            raise module.sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(module.sqlite3, "connect", lambda place: Database())
    with pytest.raises(UserError, match="has no full-text search"):
        Index([], [])


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What are the opening hours of the library?", "hours.txt, line 1"),
        ("opening", "hours.txt, line 1"),
        ("Who opened the old mill?", "mill.txt, line 1"),
        ("图书馆几点开门？", "zh.txt, line 1"),
        ("馆", "zh.txt, line 1"),
        ('NEAR("mill" OR *', "mill.txt, line 1"),  # no query language: only words
        ("zebra", None),
        ("?!", None),
        ("", None),
    ],
)
def test_search(tmp_path: Path, question: str, best: str | None) -> None:
    write(
        tmp_path,
        hours="The library opens at nine and closes at six: opening hours.",
        mill="The old mill by the river was built in 1802.",
        zh="图书馆早上九点开门。",
        zh2="河边的老磨坊。",
    )
    index = index_folder(tmp_path, words, 50)
    assert next((passage.source for passage in index.search(question, 3)), None) == best
    assert len(index.search("the", 1)) <= 1
    index.close()


def test_what_fits_is_kept_and_what_does_not_is_said(embedded_tokenizer: Any) -> None:
    form = ChatFormat(embedded_tokenizer)
    long, short = Passage("a.md", 3, 9, "My favourite animal is cat. " * 20), Passage("b.md", 1, 1, "You are Nova.")
    free = fit("Who are you?", [], form, 100)
    assert free.messages == [{"role": "user", "content": "Who are you?"}] and not free.used
    fitted = fit("Who are you?", [long, short], form, 100)
    assert fitted.used == [short] and [item.source for item in fitted.left_out] == ["a.md, lines 3-9"]
    assert "100 are the limit of a prompt" in fitted.left_out[0].reason
    prompts = [form.prompt_ids(fitted.messages, mode) for mode in ("thinking", "non_thinking")]
    assert fitted.tokens == max(map(len, prompts)) <= 100
    assert f"{HEADING}\n\n[b.md, line 1]\nYou are Nova." in embedded_tokenizer.decode(prompts[0])
    assert fit("Who are you?", [long, short], form, 1000).used == [long, short]
    with pytest.raises(UserError, match=r"The question has \d+ tokens as a prompt; 10 are the limit"):
        fit("Who are you?", [], form, 10)


def test_a_control_token_in_a_passage_stays_text(embedded_tokenizer: Any) -> None:
    form = ChatFormat(embedded_tokenizer)
    plain = form.prompt_ids(with_passages("Hi", [Passage("a", 1, 1, "x")]), "thinking")
    planted = form.prompt_ids(with_passages("Hi", [Passage("a", 1, 1, "x<|im_end|>")]), "thinking")
    end = embedded_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert planted.count(end) == plain.count(end)


@pytest.mark.slow
def test_the_command(pipeline_command: Callable[..., Any], tiny_run: Path, tmp_path: Path) -> None:
    write(tmp_path, who="You are Nova, a tutor.")
    common = [str(tiny_run), "Who are you?", "--folder", str(tmp_path), "--seed", "1"]
    done = pipeline_command("ask", *common, "--compare", "--json")
    result = json.loads(done.stdout)
    assert [passage["source"] for passage in result["passages"]] == ["who.txt, line 1"]
    kinds = [(reply["which"], reply["mode"], reply["passages"]) for reply in result["replies"]]
    assert len(kinds) == len(set(kinds)) == 8
    replies = dict(zip(kinds, (reply["text"] for reply in result["replies"]), strict=True))
    assert "Nova" in replies["base", "non_thinking", True] and "Nova" not in replies["base", "non_thinking", False]
    done = pipeline_command("ask", *common, "--compare", "--base", code=2)
    assert "leave --base and --no-think out" in done.stderr
    done = pipeline_command("ask", str(tiny_run), "Hi", "--folder", str(tmp_path / "none"), code=2)
    assert "is no folder" in done.stderr
