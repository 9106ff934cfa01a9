"""The light tokenizer gives what ``AutoTokenizer`` gives: ids, text, prompts; and says what is wrong with a folder."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Conversation
from pipeline.model.load import load_data_tokenizer
from pipeline.model.tokenizer import FastTokenizer, reads
from pipeline.settings import load_profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parents[2] / "models/embedded"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": "é<&"}}}


def test_the_profile_gets_it() -> None:
    assert isinstance(load_data_tokenizer(load_profile("embedded", []).model), FastTokenizer)


def test_it_is_the_same_tokenizer(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    light, whole = FastTokenizer(FOLDER), embedded_tokenizer
    assert light.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()
    assert (light.eos_token, light.eos_token_id, len(light)) == (whole.eos_token, whole.eos_token_id, len(whole))
    assert (light.get_added_vocab(), light.get_vocab()) == (whole.get_added_vocab(), whole.get_vocab())
    assert light.special_tokens_map == whole.special_tokens_map
    assert ChatFormat(light).key == ChatFormat(whole).key  # pools made with one serve the other


@given(
    question=st.text(max_size=40), answer=st.text(min_size=1, max_size=40), thinks=st.booleans(), tools=st.booleans()
)
def test_examples_are_the_same(
    embedded_tokenizer: PreTrainedTokenizerBase, question: str, answer: str, thinks: bool, tools: bool
) -> None:
    message = {"role": "assistant", "content": f"a{answer}"} | ({"reasoning_content": f"r{answer}"} if thinks else {})
    messages = [{"role": "user", "content": question}, message]
    conversation = Conversation(messages, "thinking" if thinks else "non_thinking", tools=[TOOL] if tools else [])
    made = [ChatFormat(t).examples([conversation])[0] for t in (FastTokenizer(FOLDER), embedded_tokenizer)]
    assert made[0] == made[1] or [str(m) for m in made] == [str(made[0])] * 2
    if isinstance(made[0], list):
        ids = made[0][0].input_ids
        assert FastTokenizer(FOLDER).decode(ids) == embedded_tokenizer.decode(ids)


def test_it_can_be_sent_to_a_worker() -> None:
    form = ChatFormat(FastTokenizer(FOLDER))
    messages = [{"role": "user", "content": "q"}]
    assert pickle.loads(pickle.dumps(form)).prompt_ids(messages, "thinking") == form.prompt_ids(messages, "thinking")


def test_generation_blocks_are_rendered_as_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
        "{% if not messages %}{{ raise_exception('none') }}{% endif %}",
        encoding="utf-8",
    )
    light = FastTokenizer(folder)
    assert light.apply_chat_template([{"role": "user", "content": "x"}]) == "x<|im_end|>"


@pytest.mark.parametrize("damage", ["no file", "other class", "no config"])
def test_other_folders_are_left_to_transformers(tmp_path: Path, damage: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, tmp_path / name)
    assert reads(tmp_path)
    if damage == "other class":
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}', encoding="utf-8")
    else:
        (tmp_path / ("tokenizer.json" if damage == "no file" else "tokenizer_config.json")).unlink()
    assert not reads(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "tokenizer_config.json", tmp_path)
    for content, said in (("{}", "it has no 'model'"), ("{", "is not valid JSON")):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            FastTokenizer(tmp_path)
    assert json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]
