"""The mask audit: the same rows through a framework and through this project, token by token.

In: a profile, a recipe or the built-in cases, names of frameworks, or tokens that another program made of the rows. Out: an
``Audit``. A framework runs in a process of its own,
in its own environment; one that cannot be had or fails is an entry with its error, and the others run all the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import now, read_json, write_json, write_jsonl
from pipeline.core.versions import pinned, same
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Conversation
from pipeline.handover.cases import case_conversations
from pipeline.handover.compare import Comparer, Tokens
from pipeline.handover.environments import interpreter
from pipeline.handover.frameworks import FRAMEWORKS, Framework, Setting, framework
from pipeline.handover.records import Audit, RowAudit, SettingAudit
from pipeline.handover.rows import AuditRow, answer_rows, conversation_rows, recipe_conversations
from pipeline.handover.tokens import form_of, read_tokens
from pipeline.model.load import load_data_tokenizer, load_tokenizer, model_location
from pipeline.settings import ModelSettings, Profile, load_recipe

if TYPE_CHECKING:
    from pipeline.settings import Recipe

RUNNERS = Path(__file__).with_name("runners")
RESULT, LOG = "result.json", "log.txt"
ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")
RUN_SECONDS = 1200
ROWS = 4  # of each source of a recipe
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
OF_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map*",
    "added_tokens*",
    "chat_template*",
    "config.json",
)
# Enough for a framework that asks a folder what kind of model it holds.
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


@dataclass
class Asked:
    """What to audit.

    Args:
        names: frameworks, each with the settings that are wanted (empty: all of them).
        cases: the built-in conversations in the place of the recipe's rows.
        rows: of each source of the recipe.
        pythons: framework → interpreter of an environment of the user's own, whatever version it has.
        tokens: file of what any other program made of the rows (``pipeline.handover.tokens``).
        folder: where to write the rows, for such a program: ``rows.jsonl``, and one answer a row ``rows_answers.jsonl``.
    """

    names: Mapping[str, Sequence[str]]
    cases: bool = False
    rows: int = ROWS
    pythons: Mapping[str, Path] = field(default_factory=dict)
    tokens: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class FrameworkTask:
    """One setting of a framework, and the rows that it is run on.

    ``data``: a folder that was handed over, whose files are read in the place of the rows. ``command``: a command line for
    several GPUs, of which only the configuration is read.
    """

    name: str
    values: Mapping[str, Any]
    rows: Sequence[AuditRow]
    data: Path | None = None
    command: str = ""


@dataclass(frozen=True)
class Made:
    """What a framework made of a task: its rows, or why it did not; of a command the stage of ZeRO or the version of FSDP."""

    versions: dict[str, str]
    rows: list[Tokens]
    error: str = ""
    divided: int = 0


def audit(profile: Profile, asked: Asked) -> Audit:
    """Run every framework with every setting that is asked for, and compare tokens that were given.

    Raises:
        UserError: an unknown framework or setting, a recipe without usable rows, a model without Qwen3's kind of template,
            tokens of a wrong form or number.
    """
    wanted = [(framework(name), settings) for name, settings in asked.names.items()]
    chosen = [(f, [f.setting(n) for n in names] or list(f.settings)) for f, names in wanted]
    for name in asked.pythons:
        framework(name)
    tokenizer = load_data_tokenizer(profile.model)
    form = ChatFormat(tokenizer)
    require_qwen3(form)
    recipe: Recipe = load_recipe(profile.recipe, profile.mix)
    limit = profile.length_limit
    conversations = (
        case_conversations()
        if asked.cases
        else recipe_conversations(recipe, form, limit, profile.data.turns, asked.rows)
    )
    rows = rows_of(conversations, form, profile)
    if asked.folder is not None:
        for name, which in (("rows.jsonl", "conversations"), ("rows_answers.jsonl", "answers")):
            write_jsonl(asked.folder / name, (row.plain() for row in rows[which]))
    comparer = Comparer(tokenizer, form.style, limit)
    found = Audit(
        made=now(),
        model=shown_name(profile.model),
        template=form.key,
        recipe="cases" if asked.cases else recipe.name,
        max_length=limit,
    )
    if asked.tokens is not None:
        found.settings.append(given(asked.tokens, rows, comparer))
    with tempfile.TemporaryDirectory(prefix="audit") as folder:
        work = Path(folder)
        model = write_model(profile.model, work / "model")
        for one, settings in chosen:
            say(f"{one.name}: {', '.join(setting.name for setting in settings)}")
            tasks = [FrameworkTask(setting.name, setting.values, rows[setting.form]) for setting in settings]
            results = run_framework(one, tasks, model, limit, work / one.name, asked.pythons.get(one.name))
            found.settings += [
                audited(one, setting, task.rows, made, comparer)
                for setting, task, made in zip(settings, tasks, results, strict=True)
            ]
    return found


def shown_name(settings: ModelSettings) -> str:
    """The model's name for a record: of a folder its last part, as the rest is this machine's."""
    return Path(settings.name).name if Path(settings.name).is_dir() else settings.name


def require_qwen3(form: ChatFormat) -> None:
    """The frameworks' settings are for Qwen3's kind of template.

    Raises:
        UserError: the model has another one.
    """
    style = form.style
    if style.end != "<|im_end|>" or not style.soft_switch:
        raise UserError(
            "The audit knows the frameworks' settings for models with Qwen3's chat template (Qwen3-0.6B to Qwen3-32B, 30B-A3B); "
            "this model's switches its modes in another way."
        )


def rows_of(conversations: Sequence[Conversation], form: ChatFormat, profile: Profile) -> dict[str, list[AuditRow]]:
    """The conversations in the forms that a framework takes them in; rows of tokens are those of answers."""
    arguments = (conversations, form, profile.data.turns, profile.length_limit)
    answers = answer_rows(*arguments)
    return {"conversations": conversation_rows(*arguments), "answers": answers, "tokens": answers}


def write_model(settings: ModelSettings, folder: Path) -> Path:
    """A folder with the model's tokenizer and a config, and no weights: no framework needs them to prepare its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings.source == "local":
        source = Path(model_location(settings, weights=False))
        for pattern in OF_TOKENIZER:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
    else:
        load_tokenizer(settings).save_pretrained(folder)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", CONFIG | {"vocab_size": len(load_data_tokenizer(settings))})
    return folder


def run_framework(
    one: Framework, tasks: Sequence[FrameworkTask], model: Path, limit: int, work: Path, python: Path | None = None
) -> list[Made]:
    """What the framework makes of each task, all in one process; where a task ends it, the rest is done by another.

    Args:
        model: folder with the tokenizer. limit: tokens of a row. work: a folder to work in. python: see ``Asked``.

    Returns:
        One entry a task, in order. A framework that cannot be installed or started has that as the error of all.
    """
    try:
        chosen = python or interpreter(one)
        require_runs(chosen)
    except UserError as error:
        return [Made({}, [], str(error)) for _ in tasks]
    results: list[Made] = []
    while len(results) < len(tasks):
        folder = work / str(len(results))
        left = tasks[len(results) :]
        failed = _call(chosen, one, left, model, limit, folder)
        written = read_json(folder / RESULT) if (folder / RESULT).exists() else {"versions": {}, "tasks": {}}
        if not failed and len(written["tasks"]) < len(left):
            failed = f"{one.name} ended without a result: {last_words(folder / LOG)}"
        for task in left[: len(written["tasks"])]:
            made = written["tasks"][task.name]
            rows = [Tokens(row["input_ids"], row["labels"]) for row in made["rows"]]
            results.append(Made(written["versions"], rows, "", made.get("divided", 0)))
        if failed:
            results.append(Made({}, [], failed))
    return results


def require_runs(python: Path) -> None:
    """Raise ``UserError`` where this is no Python."""
    try:
        done = subprocess.run([str(python), "-c", "import json"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python} cannot be run; give the interpreter of an environment.") from error
    if done.returncode:
        raise UserError(f"{python} is no Python; give the interpreter of an environment.")


def _call(python: Path, one: Framework, tasks: Sequence[FrameworkTask], model: Path, limit: int, folder: Path) -> str:
    """Run the framework's runner on the tasks; returns why it failed, or an empty text."""
    folder.mkdir(parents=True)
    job = [
        {
            "name": task.name,
            "folder": str(folder / task.name),
            "rows": [row.job() for row in task.rows],
            "settings": dict(task.values),
            "data": None if task.data is None else str(task.data.resolve()),
            "command": task.command,
        }
        for task in tasks
    ]
    write_json(folder / "job.json", {"model": str(model.resolve()), "max_length": limit, "tasks": job})
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    words = [str(python), str(RUNNERS / one.runner), str(folder / "job.json"), str(folder / RESULT)]
    log = folder / LOG
    with log.open("wb") as said:
        try:
            done = subprocess.run(words, stdout=said, stderr=said, cwd=folder, env=kept | QUIET, timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            return f"{one.name} did not end within {RUN_SECONDS // 60} minutes."
    return f"{one.name} failed: {last_words(log)}" if done.returncode else ""


def last_words(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    named = [line for line in lines if ERROR.match(line)]
    return (named or lines or ["no word of why"])[-1][:500]


def audited(one: Framework, setting: Setting, rows: Sequence[AuditRow], made: Made, comparer: Comparer) -> SettingAudit:
    """The rows of one setting compared."""
    note = "" if made.error else version_note(one, made.versions)
    return _audited(one.name, setting, rows, made, note, comparer)


def given(path: Path, rows: Mapping[str, Sequence[AuditRow]], comparer: Comparer) -> SettingAudit:
    """Tokens that another program made, compared.

    Raises:
        UserError: they have a wrong form or number.
    """
    found = read_tokens(path, len(comparer.tokenizer))
    form = form_of(path, found, rows)
    each = "a conversation" if form == "conversations" else "one answer"
    setting = Setting(path.name, f"tokens that another program made; a row is {each}", form)
    return _audited("tokens", setting, rows[form], Made({}, found), "", comparer)


def _audited(
    name: str, setting: Setting, rows: Sequence[AuditRow], made: Made, note: str, comparer: Comparer
) -> SettingAudit:
    compared: list[RowAudit] = []
    if not made.error:
        compared = [comparer.row(row, tokens) for row, tokens in zip(rows, align(rows, made.rows), strict=True)]
    return SettingAudit(
        framework=name,
        setting=setting.name,
        how=setting.how,
        values=setting.values,
        form=setting.form,
        versions=made.versions,
        version_note=note,
        error=made.error,
        rows=compared,
        equal_rows=sum(row.equal for row in compared),
        loss_tokens=sum(row.loss_tokens for row in compared),
        equal_loss_tokens=sum(row.equal_loss_tokens for row in compared),
        framework_loss_tokens=sum(row.framework_loss_tokens for row in compared),
    )


def version_note(one: Framework, versions: Mapping[str, str]) -> str:
    """A sentence where another version ran than the one whose settings are known."""
    wanted = one.version or pinned()[one.package]
    found = versions.get(one.package, "")
    if same(found, wanted):
        return ""
    return f"{one.package} {found} ran; the settings were checked with {wanted}"


def align(rows: Sequence[AuditRow], made: Sequence[Tokens]) -> list[Tokens | None]:
    """Which row each of the framework's is, where it left some out: in order, each the most similar of those that it can be."""
    if len(made) == len(rows):
        return list(made)
    result: list[Tokens | None] = [None] * len(rows)
    place = 0
    for done, tokens in enumerate(made):
        last = len(rows) - (len(made) - done)  # so many have to be left for the others
        if last < place:
            raise UserError(f"The framework made more rows ({len(made)}) than it was given ({len(rows)}).")

        def likeness(number: int, ids: Sequence[int] = tokens.input_ids) -> float:
            return SequenceMatcher(None, rows[number].examples[-1].input_ids, ids, autojunk=False).ratio()

        best = max(range(place, last + 1), key=likeness)
        result[best] = tokens
        place = best + 1
    return result


def parse_names(texts: Sequence[str]) -> dict[str, list[str]]:
    """``trl``, ``trl:assistant_only`` and ``all`` as names with their settings."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, setting = text.partition(":")
        for each in FRAMEWORKS if name == "all" else [name]:
            found.setdefault(each, [])
        if setting:
            found[name].append(setting)
    return found


def json_text(found: Audit) -> str:
    """As ``audit.json`` holds it."""
    return json.dumps(found.model_dump(), ensure_ascii=False, indent=1) + "\n"
