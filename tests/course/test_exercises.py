"""The exercises of notebooks 00 to 02, and what holds for every notebook: form, no outputs, no machine's paths."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from pipeline.core.errors import UserError
from pipeline.course import exercises
from pipeline.course.exercises import check, nb00, nb01, nb02, nb02b
from pipeline.data.chat_format import EMPTY_THINK
from pipeline.data.cleaning.decontaminate import Decontaminator, load_benchmarks
from pipeline.data.conversations import Conversation, Rejected, converter
from pipeline.settings import BenchmarkSettings, Decontamination

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
NOTEBOOKS = [*COURSE, *SOLUTIONS]
PARAMETERS = {"profile": "embedded", "output_dir": "../outputs/course/main", "chat_share": None, "overrides": []}
SIZES = {"short", "trials", "methods"}  # of the sweeps and trainings that a notebook has of its own
CLEAN: dict[str, Any] = {
    "score": {"at_least": 3},
    "broken_reasoning": True,
    "check_answer": True,
    "repetition": {},
    "languages": ["en", "zh"],
    "refusals": True,
    "personal_data": {"action": "drop"},
    "exact_duplicates": True,
    "near_duplicates": {},
}
TRIAL = ["training.max_steps=50", "training.learning_rate=2e-3", "data.validation_fraction=0"]


# --- right and wrong answers ------------------------------------------------------------------------------------------


def _obeys(prompt: list[int], ids: list[int], labels: list[int], end: int) -> bool:
    n = len(prompt)
    return ids[:n] == prompt and labels[:n] == [-100] * n and labels[n:] == ids[n:] and ids[n:][-1:] == [end]


def _from_scratchpad(row: dict[str, Any]) -> Conversation:
    if not row["scratchpad"].strip():
        raise Rejected("empty_reasoning")
    reply = {"role": "assistant", "reasoning_content": row["scratchpad"], "content": row["reply"]}
    return Conversation([{"role": "user", "content": row["question"]}, reply], "thinking")


def _limit(lengths: list[int], keep: float) -> int:
    return next(n for i, n in enumerate(sorted(lengths), 1) if i / len(lengths) >= keep)


def _numbers_of(header: dict[str, Any]) -> int:
    """As the notebook counts above the exercise, where no weight is packed."""
    return sum(math.prod(e["shape"]) for n, e in header.items() if n != "__metadata__")


def _in_four_bit(header: dict[str, Any], *, ends: tuple[str, ...] = (".weight", ".bias"), packed: int = 2) -> int:
    own = [entry for name, entry in header.items() if name.endswith(ends)]
    return sum(math.prod(e["shape"]) * (packed if e["dtype"] == "U8" else 1) for e in own)


def _filled(prompt: list[int], target: list[int], length: int, filler: int = -100) -> list[int]:
    return [-100] * len(prompt) + target + [filler] * (length - len(prompt) - len(target))


def _without_reasoning(row: dict[str, Any]) -> Conversation:
    row = row | {"reply": f"<think>\n{row['scratchpad']}\n</think>\n\n{row['reply']}"}
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["reply"]}]
    return Conversation(messages, "thinking")


def _keeps_blank(row: dict[str, Any]) -> Conversation:
    reply = {"role": "assistant", "reasoning_content": row["scratchpad"], "content": row["reply"]}
    return Conversation([{"role": "user", "content": row["question"]}, reply], "thinking")


def _wrong_reason(row: dict[str, Any]) -> Conversation:
    if not row["scratchpad"].strip():
        raise Rejected("blank")
    return _keeps_blank(row)


def _mode(row: dict[str, Any]) -> Conversation:
    conversation = _from_scratchpad(row)
    conversation.mode = "non_thinking"
    return conversation


def _without_loss(labels: list[int], count: int) -> list[int]:
    begins = next(i for i, label in enumerate(labels) if label != -100)
    return [-100] * (begins + count) + labels[begins + count :]


RIGHT: dict[str, Any] = {
    "00.1": TRIAL,
    "00.2": _in_four_bit,
    "00.3": lambda findings: [c["name"] for c in findings["checks"] if c["required"] and not c["ok"]],
    "01.1": _filled,
    "01.2": lambda prompt: "non_thinking" if prompt.endswith(EMPTY_THINK) else "thinking",
    "01.3": _obeys,
    "02.1": _from_scratchpad,
    "02.2": CLEAN,
    "02.3": _limit,
    "00.4": (458, 367),
    "01.4": f"<|im_start|>user\nWhat is 58 + 67?<|im_end|>\n<|im_start|>assistant\n{EMPTY_THINK}",
    "01.5": lambda ids, labels: _without_loss(labels, 4),
    "02.4": lambda rows: [row for row in rows if row["labels"][-1] == rows[1]["labels"][-1]],
    "02b.1": lambda item, row: len(item & row) / len(item) if item else 0,
    "02b.2": 400,
    "02b.3": [2, 4, 7, 9],
    "02b.4": (1.0, 0.0),
}
# What a learner may well write first.
WRONG: dict[str, list[Any]] = {
    "00.1": [
        [],
        TRIAL[:2],
        [*TRIAL, "lora.rank=8"],
        ["training.max_steps=50", "training.learning_rate=1e-2", "data.validation_fraction=0"],
        {"training.max_steps": 50},
        " ".join(TRIAL),
    ],
    "00.2": [
        17,
        len,
        _numbers_of,
        lambda header: sum(math.prod(e["shape"]) for e in header.values()),  # the metadata has no shape
        lambda header: 2 * _numbers_of(header),
        lambda header: _in_four_bit(header, packed=1),
        lambda header: _in_four_bit(header, ends=(".weight",)),  # without the biases
        lambda header: _in_four_bit(header, ends=(".weight", ".bias", "quant_map")),  # with the tables of levels
    ],
    "00.3": [
        [],
        lambda findings: [c["name"] for c in findings["checks"] if not c["ok"]],
        lambda findings: [c["name"] for c in findings["checks"] if c["required"]],
        lambda findings: [c["name"] for c in reversed(findings["checks"]) if c["required"] and not c["ok"]],
    ],
    "01.1": [
        [-100, 8],
        lambda prompt, target: [-100] * len(prompt) + target,  # the notebook's own, not filled up
        lambda prompt, target, length: [-100] * len(prompt) + target,
        lambda prompt, target, length: prompt + target + [-100] * (length - len(prompt + target)),
        lambda prompt, target, length: _filled(prompt, target, length, filler=0),
        lambda prompt, target, length: _filled(prompt, target, length, filler=target[-1]),  # as the filling token is
        lambda prompt, target, length: [-100] * (length - len(target)) + target,  # filled up at the wrong end
        lambda prompt, target, length: _filled(prompt, target[:-1], length),  # no loss where the turn ends
        lambda prompt, target, length: _filled(prompt, target[1:], length),  # shifted by hand
        lambda prompt, target, length: _filled(prompt, [*target[1:], target[0]], length),
        lambda prompt, target, length: [-100 if x in prompt else x for x in _filled(prompt, target, length)],
    ],
    "01.2": [
        "thinking",
        lambda prompt: "thinking",
        lambda prompt: "non_thinking" if EMPTY_THINK in prompt else "thinking",
        lambda prompt: "non_thinking" if "/no_think" in prompt else "thinking",
        lambda prompt: "thinking" if prompt.endswith(EMPTY_THINK) else "non_thinking",
        lambda prompt: prompt.endswith(EMPTY_THINK),
    ],
    "01.3": [
        True,
        lambda prompt, ids, labels, end: True,
        lambda prompt, ids, labels, end: _obeys(prompt, ids, labels, end) or None,
        lambda prompt, ids, labels, end: labels[: len(prompt)] == [-100] * len(prompt),
        lambda prompt, ids, labels, end: labels == [-100] * len(prompt) + ids[len(prompt) :],
        lambda prompt, ids, labels, end: sum(x == -100 for x in labels) == len(prompt) and ids[-1] == end,
        lambda prompt, ids, labels, end: ids[: len(prompt)] == prompt and labels[-1] == end,
    ],
    "02.1": [
        "openmathreasoning",
        _without_reasoning,
        _keeps_blank,
        _wrong_reason,
        _mode,
        lambda row: [{"role": "user", "content": row["question"]}],
        lambda row: Conversation([{"role": "user", "content": row["question"]}], "thinking"),
    ],
    "02.2": [
        [],
        {},
        {"refusal": True},  # misspelt
        {"languages": ["english"]},
        {"score": 3},
        # Without exact_duplicates the answer stays right: near_duplicates takes equal rows too.
        *({k: v for k, v in CLEAN.items() if k != step} for step in CLEAN if step != "exact_duplicates"),
        CLEAN | {"personal_data": {}},  # masks, so the row stays
        CLEAN | {"languages": ["en"]},
        CLEAN | {"score": {"at_least": 3.5}},
        CLEAN | {"length": {"min_answer": 10}},
        CLEAN | {"near_duplicates": {"threshold": 0.5}},
        CLEAN | {"personal_data": {"action": "drop", "kinds": ["email", "phone", "ip_address"]}},
        CLEAN | {"class_balance": {}},
    ],
    "02.3": [
        144,
        lambda lengths, keep: max(lengths),
        lambda lengths, keep: sorted(lengths)[int(keep * len(lengths)) - 1] - 1,
        lambda lengths, keep: float(_limit(lengths, keep)) + 0.5,
        lambda lengths, keep: float(_limit(lengths, keep)),
        lambda lengths, keep: sorted(lengths)[min(int(keep * len(lengths)), len(lengths) - 1)],
    ],
    "00.4": [58, (58, 67), (58.0, 67.0), (0, 5), ("58", "67")],
    "01.4": [
        lambda question: question,
        "What is 58 + 67?" + EMPTY_THINK,
        "<|im_start|>user\nWhat is 58 + 67?<|im_end|>\n<|im_start|>assistant\n",  # the thinking prompt
        f"<|im_start|>user\nWhat is 58 + 66?<|im_end|>\n<|im_start|>assistant\n{EMPTY_THINK}",
        f"<|im_start|>user\n58 + 67 = 125.<|im_end|>\n<|im_start|>assistant\n{EMPTY_THINK}",
    ],
    "01.5": [
        [-100],
        lambda ids, labels: labels,  # nothing repaired
        lambda ids, labels: ids,  # loss on everything
        lambda ids, labels: _without_loss(labels, 5),  # the first token of the answer too
        lambda ids, labels: [-100] * len(labels),
        lambda ids, labels: labels[4:],
    ],
    "02.4": [
        30,
        lambda rows: rows,
        lambda rows: [],
        lambda rows: rows[1::3],  # whole, but not all of them
        lambda rows: [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows],
        lambda rows: [row for row in rows if len(row["labels"]) > 40],
    ],
    "02b.1": [
        0.9,
        lambda a, b: 0.5,
        lambda item, row: len(item & row) / len(item | row),  # Jaccard
        lambda item, row: len(item & row) / len(item),  # divides by zero
        lambda item, row: len(item & row) / len(item) if item else 1,
        lambda item, row: len(item & row) / max(len(row), 1),
        lambda item, row: item <= row,
        lambda item, row: item & row,
    ],
    "02b.2": [128, 20, 401, 400.0, 0, -400],
    "02b.4": [0.9, (0.0, 0.0), (1.0, 1.0), (2, 0), ("all", "none")],
    "02b.3": [4, [], [0, 2, 4, 7, 9], [2, 4, 9], [2, 4, 7, 9, 10], [1, 2], ["2", "4", "7", "9"], list(range(1, 11))],
}
NAMES = sorted(RIGHT)
TRAIN = ("00.4", "01.4", "01.5", "02.4", "02b.4")  # their checks ask or train a model
NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]  # by day the solutions try the right answers


def _case(*values: Any) -> Any:
    return pytest.param(*values, marks=NIGHTLY if values[0] in TRAIN else ())


def test_every_exercise_of_these_notebooks_is_tried() -> None:
    registered = {name for name in exercises._CHECKS if name[:2] in ("00", "01", "02")}
    assert registered == set(RIGHT) == set(WRONG)
    modules = {f"pipeline.course.exercises.nb{n.partition('.')[0]}" for n in registered}
    assert {nb00.__name__, nb01.__name__, nb02.__name__, nb02b.__name__} == modules


@pytest.mark.parametrize("name", [_case(name) for name in NAMES])
def test_the_right_answer_passes(name: str) -> None:
    assert check(name, RIGHT[name]) == f"{name}: right"


@pytest.mark.parametrize(("name", "number"), [_case(name, i) for name in NAMES for i in range(len(WRONG[name]))])
def test_a_wrong_answer_fails_with_a_hint(name: str, number: int) -> None:
    with pytest.raises(AssertionError) as caught:
        check(name, WRONG[name][number])
    hint = str(caught.value)
    assert re.fullmatch(r".{20,}[.?]", hint, re.DOTALL), hint


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_yet_is_no_error(name: str) -> None:
    assert check(name, ...) == f"{name}: not answered yet"


@pytest.mark.parametrize("name", ["99.1", "01.9", "", "zz", "01"])
def test_an_unknown_exercise_is_named(name: str) -> None:
    with pytest.raises(UserError, match="no exercise"):
        check(name, 1)


def _hint(name: str, answer: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check(name, answer)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"check_answer": False}, "Still in the data: a wrong answer."),
        ({"personal_data": None}, "Still in the data: a person's data."),
        ({"languages": None, "repetition": None}, "Still in the data: another language, text that goes in circles."),
        ({"near_duplicates": {"threshold": 0.5}}, "Good rows were lost: line 70 (near_duplicates, near_duplicate: "),
        ({"length": {"min_answer": 2}}, "Good rows were lost: line 61 (length, too_short: "),
    ],
)
def test_the_hint_says_which_dirt_is_left_or_which_good_rows_are_lost(change: dict[str, Any], hint: str) -> None:
    assert _hint("02.2", CLEAN | change).startswith(hint)


def test_more_steps_than_needed_are_right_too() -> None:
    assert check("02.2", CLEAN | {"normalise": True, "length": {}}) == "02.2: right"


def test_hints_about_contamination_do_not_name_a_missing_line() -> None:
    assert re.findall(r"\d+", _hint("02b.3", [2, 4, 9])) == ["1"]


@pytest.mark.parametrize(("ngram", "overlap", "lines"), [(8, 0.5, [2, 4, 9]), (5, 0.35, [2, 4, 7, 9])])
def test_contaminated_lines_are_those_that_the_module_finds(
    tmp_path: Path, ngram: int, overlap: float, lines: list[int]
) -> None:
    benchmark, training = nb02b.contamination_files(tmp_path)
    settings = BenchmarkSettings(name="b", source="local", path=str(benchmark))  # type: ignore[call-arg]
    decontamination = Decontamination(benchmarks=[settings], ngram=ngram, overlap=overlap)
    decontaminate = Decontaminator(load_benchmarks(decontamination), decontamination)
    found = []
    for line, text in enumerate(training.read_text(encoding="utf-8").splitlines(), 1):
        try:
            decontaminate(converter("auto")(json.loads(text)))
        except Rejected as rejected:
            assert rejected.reason == "contaminated"
            found.append(line)
    assert found == lines


def test_the_prompts_of_01_2_are_what_the_template_writes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {mode for _, mode, _ in nb01.PROMPTS} == {"thinking", "non_thinking"}
    for messages, mode, text in nb01.PROMPTS:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=mode == "thinking"
        )
        assert rendered == text


def test_the_practice_file_is_the_same_each_time_and_holds_what_it_says(tmp_path: Path) -> None:
    texts = [nb02.practice_file(tmp_path / name).read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]
    rows = [json.loads(line) for line in texts[0].splitlines()]
    dirty = [bool(kind) for kind, _ in nb02._practice()]
    assert len(rows) == len(dirty) == 73 and sum(dirty) == 20
    assert all(row.keys() <= {"question", "answer", "score", "expected_answer"} for row in rows)
    for line, (row, (kind, _)) in enumerate(zip(rows, nb02._practice(), strict=True)):
        if kind == "a duplicate":
            assert row in rows[:line], "the first of two equal rows has to be the good one"


def test_the_header_of_00_2_has_the_names_that_bitsandbytes_gives() -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    weight = torch.linspace(-1, 1, 128).reshape(8, 16)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    layer = "model.layers.0.mlp.up_proj.weight"
    written = {layer: packed} | {f"{layer}.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    types = {torch.uint8: "U8", torch.float32: "F32"}
    own = {name: (entry["dtype"], entry["shape"]) for name, entry in nb00.four_bit_header().items() if layer in name}
    found = {name: (types[tensor.dtype], list(tensor.shape)) for name, tensor in written.items()}
    state_of = f"{layer}.quant_state.bitsandbytes__nf4"  # its length is that of a text
    assert found.pop(state_of)[0] == own.pop(state_of)[0] and found == own


# --- what a learner sees of a wrong answer ------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """The part of a notebook's kernel that runs cells and prints what went wrong."""
    InteractiveShell.clear_instance()
    one = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}), colors="nocolor")
    yield one
    one.reset(new_session=False)
    InteractiveShell.clear_instance()


def _seen(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], answer: str) -> tuple[BaseException | None, str]:
    """The exception that a cell with this answer to 00.2 ends with, and all that is printed."""
    cell = f"from pipeline.course.exercises import check\n\n\n{answer}\n\n\nprint(check('00.2', answer))"
    error = shell.run_cell(cell).error_in_exec
    printed = capsys.readouterr()
    return error, printed.out + printed.err


def test_a_notebook_shows_the_hint_and_no_line_of_ours(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    error, text = _seen(shell, capsys, "answer = len")
    assert isinstance(error, exercises.Hint), "the cell failed, in batch too"
    assert text == f"Hint: {error}\n" and str(error).startswith("A header whose only tensor is a norm")


RAISES = """def answer(header):
    total = 0
    return total + header["shape"]"""


def test_an_answer_that_raises_shows_the_learner_s_own_line(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    error, text = _seen(shell, capsys, RAISES)
    assert isinstance(error, exercises.Hint) and isinstance(error.__cause__, KeyError)
    assert text.splitlines() == [
        "Hint: Your code raised KeyError: 'shape'.",
        '    return total + header["shape"]',
        "That was in line 6 of your code. What did it get there, and what does it expect?",
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("def answer(header):\n    assert 'weight' in header", "Your code raised AssertionError.\n    assert 'weight'"),
        (
            "def answer():\n    return 5",
            "The check cannot work with this answer. TypeError: answer() takes 0 positional",
        ),
        (
            "def answer(header):\n    raise ExceptionGroup('two', [ValueError('x')])",
            "Your code raised ExceptionGroup: two",
        ),
        ("def answer(header):\n    return check('01.9', 1)", "There is no exercise '01.9'"),
    ],
)
def test_whatever_is_raised_is_told_without_our_code(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], answer: str, words: str
) -> None:
    error, text = _seen(shell, capsys, answer)
    assert isinstance(error, exercises.Hint) and text.startswith(f"Hint: {words}")
    assert "Traceback" not in text and "nb00" not in text and "whole" not in text


def test_a_right_answer_in_a_notebook(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.user_ns["answer"] = _in_four_bit
    error, text = _seen(shell, capsys, "answer = answer")
    assert error is None and text == "00.2: right\n"


# --- every notebook ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def _code(path: Path) -> list[Any]:
    return [cell for cell in _read(path).cells if cell.cell_type == "code"]


def _ids(paths: list[Path]) -> Any:
    names = [str(path.relative_to(ROOT / "notebooks").with_suffix("")) for path in paths]
    return pytest.mark.parametrize("path", paths, ids=names)


def test_every_lesson_has_its_solutions_and_names_them() -> None:
    numbers = [path.stem.partition("_")[0] for path in COURSE]
    assert numbers == sorted([*(f"{number:02}" for number in range(13)), "02b", "03b", "06b"])
    assert [path.name for path in SOLUTIONS] == [path.name for path in COURSE]
    for path in COURSE:
        assert any(f"`solutions/{path.name}`" in cell.source for cell in _read(path).cells), path.name


@_ids(NOTEBOOKS)
def test_notebook_is_valid_and_has_no_outputs(path: Path) -> None:
    notebook = _read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in _code(path):
        assert cell.outputs == [] and cell.execution_count is None, cell.source


@_ids(NOTEBOOKS)
def test_notebook_begins_with_what_it_teaches(path: Path) -> None:
    first = _read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    if path in COURSE:
        for word in ("time", "memory", "disk"):
            assert re.search(rf"\*\*[^*]*{word}", first.source, re.IGNORECASE), f"nothing about {word} at the top"


@_ids(NOTEBOOKS)
def test_notebook_has_the_parameters_cell(path: Path) -> None:
    tagged = [cell for cell in _code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0].id == _code(path)[0].id, "the parameters come first"
    values: dict[str, Any] = {}
    exec(tagged[0].source, values)
    given = {name: value for name, value in values.items() if not name.startswith("__") and name not in SIZES}
    if path in COURSE:
        assert given == PARAMETERS
    else:  # those that it uses; its folder lies one deeper
        expected = PARAMETERS | {"output_dir": f"../{PARAMETERS['output_dir']}"}
        assert all(expected[name] == value for name, value in given.items())


@_ids(NOTEBOOKS)
def test_cells_are_short_and_compile(path: Path) -> None:
    for cell in _code(path):
        lines = cell.source.splitlines()
        assert cell.source.strip(), "an empty cell"
        assert len(lines) <= (10 if path in COURSE else 15), f"{len(lines)} lines:\n{cell.source}"
        compile(cell.source, path.name, "exec")
        assert not re.search(r"^\s*if (False|0|True)\b", cell.source, re.MULTILINE), cell.source


@_ids(NOTEBOOKS)
def test_no_path_of_a_machine(path: Path) -> None:
    pattern = re.compile(r"(?<![\w.<:/])/(?:home|Users|work|tmp|root|mnt|content|kaggle|opt|usr|data)/|\b[A-Z]:\\[A-Z]")
    for cell in _read(path).cells:
        # Where a hosted service keeps its files is no path of anybody's machine.
        text = cell.source.replace("/mnt/workspace", "") if cell.id.endswith("-hosted") else cell.source
        assert not pattern.search(text), cell.source
    assert "/work/" not in path.read_text(encoding="utf-8")


@_ids(COURSE)
def test_exercises_at_the_end_are_left_open(path: Path) -> None:
    number = path.name.partition("_")[0]
    asked = [cell for cell in _code(path) if re.search(r"print\(check\(", cell.source)]
    names = [re.search(r'check\("([\w.]+)"', cell.source)[1] for cell in asked]  # type: ignore[index]
    assert names == [f"{number}.{i}" for i in range(1, len(names) + 1)] and len(names) >= 3
    for cell in asked:
        assert re.search(r"^answer = \.\.\.  # .+", cell.source, re.MULTILINE), cell.source
    assert asked[-1].id == _code(path)[-1].id


GRADES = {"easy": "简单", "medium": "中等", "hard": "较难"}
GRADED = [path for path in COURSE if path.name[:2] in ("00", "01", "02", "03")]


@_ids(GRADED)
def test_each_exercise_says_how_hard_it_is_in_both_languages(path: Path) -> None:
    number = path.name.partition("_")[0]
    found: list[dict[str, str]] = []
    for folder, pattern in (
        (path.parent, r"\*\* \((?:[^()]*; )?(\w+)\)"),
        (path.parent / "zh", r"\*\*（(?:[^（）]*；)?(\w+)）"),
    ):
        prose = [cell.source for cell in _read(folder / path.name).cells if cell.cell_type == "markdown"]
        found.append(dict(re.findall(rf"^\*\*({number}\.\d+){pattern}", "\n".join(prose), re.MULTILINE)))
    english, chinese = found
    assert len(english) == sum("print(check(" in cell.source for cell in _code(path))
    assert {name: GRADES[grade] for name, grade in english.items()} == chinese
    assert len(set(english.values())) >= 2


@pytest.mark.slow
@_ids(SOLUTIONS)
def test_solutions_run_alone_and_solve_every_exercise(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    values: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(_code(path)):
            exec(compile(cell.source, f"{path.name}, code cell {number}", "exec"), values)
            if "parameters" in cell.metadata.get("tags", []):
                values["output_dir"] = str(tmp_path / "run")
    asked = re.findall(
        r'print\(check\("([\w.]+)"', "\n".join(cell.source for cell in _code(COURSE[SOLUTIONS.index(path)]))
    )
    assert re.findall(r"^(\w+\.\d+): (.*)$", printed.getvalue(), re.MULTILINE) == [(name, "right") for name in asked]
