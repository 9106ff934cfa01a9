"""A model with one mode: one cell, one column, and nothing that waits for the other mode."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.modes import MODES, Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.evaluation.cells import finished_cells, modes_in, write_modes
from pipeline.evaluation.distance import sequences_of
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.report.build import build_report
from pipeline.evaluation.report.card import model_card
from pipeline.evaluation.report.page import html
from pipeline.evaluation.report.words import headline, table
from pipeline.settings import load_profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_a_model_is_evaluated_in_the_mode_that_it_has(
    tmp_path: Path, embedded_tokenizer: PreTrainedTokenizerBase, tiny_qwen3: Any
) -> None:
    config = load_profile(
        "embedded",
        ["evaluation.limit=3", "evaluation.benchmarks=[embedded_chat]", "evaluation.workers=1"]
        + [f"evaluation.sampling.{mode}.max_new_tokens=8" for mode in MODES],
    ).evaluation
    model = tiny_qwen3(0, max_position_embeddings=512)
    for template, mode in ((TEMPLATE, "non_thinking"), (THINKS, "thinking")):
        tokenizer = copy.deepcopy(embedded_tokenizer)
        tokenizer.chat_template = template
        folder = tmp_path / mode
        cells = evaluate_model(model, tokenizer, "random", config, folder, progress=False)
        assert list(cells) == [mode] and cells[mode]["n"] == 3
        assert cells[mode]["opened"] == float(mode == "thinking")  # the prompt opened it
        assert modes_in(folder) == [mode]
        found = finished_cells(folder)
        assert found is not None and {m: record["cell"] for m, record in found.items()} == cells
        other: Mode = "thinking" if mode == "non_thinking" else "non_thinking"
        with pytest.raises(UserError, match="has only its"):
            evaluate_model(model, tokenizer, "random", config, folder, [other], progress=False)


def test_the_opening_tag_of_a_prompt_is_counted_once(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    """Stored replies begin with the tag that their prompt ended with; the distance to the base is over what was written."""
    tokenizer = copy.deepcopy(embedded_tokenizer)
    tokenizer.chat_template = THINKS
    form = ChatFormat(tokenizer)
    row = {"messages": [{"role": "user", "content": "Hello"}], "benchmark": "b", "truncated": False}
    ((_, (ids, prompt)),) = sequences_of(form, [row | {"reply": "<think>\nA.\n</think>\n\nB."}], "thinking")
    assert ids[:prompt] == form.prompt_ids(row["messages"], "thinking")
    assert tokenizer.decode(ids[prompt:]) == "A.\n</think>\n\nB.<|im_end|>"


@pytest.mark.slow
def test_a_whole_run_of_a_model_with_one_mode(
    pipeline_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    model = tmp_path / "instruct"
    shutil.copytree(ROOT / "models" / "embedded", model)
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    run = tmp_path / "run"
    own = [
        f"model.name={model}",
        "recipe=data_recipes/embedded.yaml",
        "mix.shares={chat: 1}",
        "mix.total=200",
        "training.max_steps=2",
        "evaluation.limit=2",
    ]
    own += [f"training.{name}_steps=2" for name in ("eval", "save", "logging")]
    pipeline_command("run", "--output-dir", str(run), sets=own)
    report = read_json(run / "report.json")
    assert list(report["evaluation"]["tuned"]) == ["non_thinking"] == list(report["distance"])


def test_cells_of_a_folder(tmp_path: Path) -> None:
    assert modes_in(tmp_path) == list(MODES) and finished_cells(tmp_path) is None
    write_json(tmp_path / "thinking" / "cell.json", {"cell": 1})
    assert finished_cells(tmp_path) is None  # the other mode is still to come
    write_modes(tmp_path, ["thinking"])
    assert finished_cells(tmp_path) == {"thinking": {"cell": 1}}
    write_modes(tmp_path, MODES)  # another model: nothing is noted, both are waited for
    assert not (tmp_path / "modes.json").exists() and finished_cells(tmp_path) is None


# --- the report ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts() -> dict[str, Any]:
    """The sections of a report in both modes."""
    rate = {"score": 0.5, "n": 10, "ci95": [0.24, 0.76]}
    cell = {"benchmarks": {"skill": rate}, "n": 10, "mode_fidelity": 1.0, "opened": 0.0, "closed": 0.0, "leaked": 0.0}
    cell |= {"truncated": 0.1, "mean_reasoning_tokens": 0.0, "mean_answer_tokens": 8.0}
    share = {"rows": 1.0, "tokens": 1.0, "loss_tokens": 1.0}
    source = {"name": "chat", "mode": "non_thinking", "requested": 1.0, "achieved": share, "rows": 10, "rejected": {}}
    training: dict[str, Any] = {"steps": 4, "loss": [], "eval_loss": [], "tokens_per_second": 1.0}
    training |= {
        "loss_tokens_per_second": 1.0,
        "peak_memory_bytes": 1,
        "trainable_parameters": 1,
        "total_parameters": 2,
    }
    run = {"profile": "embedded", "model": "m", "seed": 1, "data_fingerprint": "f", "versions": {}}
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    evaluation = {model: {mode: copy.deepcopy(cell) for mode in MODES} for model in ("base", "tuned")}
    return {
        "run": run | times,
        "mix": {"unit": "rows", "sources": [source]},
        "training": training,
        "evaluation": evaluation,
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_report_of_one_mode(parts: dict[str, Any], mode: Mode) -> None:
    other: Mode = "thinking" if mode == "non_thinking" else "non_thinking"
    both = build_report(**parts)
    for cells in parts["evaluation"].values():
        del cells[other]
    report = build_report(**parts)
    assert list(report["retention"]) == [mode]
    assert json.loads(json.dumps(report)) == report
    name, absent = (m.replace("_", "-") for m in (mode, other))
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table(report).splitlines()[2:]]
    assert rows == [["skill", name], ["mode fidelity", name]]
    assert headline(report)[-1] == "2 of 20 replies were cut by the token limit."
    page = html(report, {("tuned", mode): [{"prompt": "q", "reply": "a"}]})
    assert page.count(f'<th class="group edge" colspan="4">{name}</th>') == 1
    assert f'<th class="group edge" colspan="4">{absent}</th>' not in page
    card = model_card(report)
    assert f"answers in one mode: {name}" in card and "both modes" not in card
    assert card.count("print(reply(") == 1 and f"thinking={mode == 'thinking'})" in card
    assert model_card(both).count("print(reply(") == 2 and "tuned for both modes" in model_card(both)


def test_a_mode_must_be_in_all_parts_of_a_report(parts: dict[str, Any]) -> None:
    del parts["evaluation"]["base"]["thinking"]
    with pytest.raises(UserError, match=r"evaluation\.base\.thinking: field required"):
        build_report(**parts)
    parts["evaluation"]["tuned"].clear()
    parts["evaluation"]["base"].clear()
    with pytest.raises(UserError, match=r"thinking: field required"):
        build_report(**parts)


def test_stored_cells_are_read(tmp_path: Path) -> None:
    write_modes(tmp_path, ["non_thinking"])
    write_json(tmp_path / "non_thinking" / "cell.json", {"cell": {}, "model_id": "a"})
    assert read_json(tmp_path / "modes.json") == ["non_thinking"]
    assert finished_cells(tmp_path) == {"non_thinking": {"cell": {}, "model_id": "a"}}
