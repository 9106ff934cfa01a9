"""A training handed over: rows, masks and schedule are those of the profile, and the target itself says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat
from pipeline.data.describe import build_profile_mix
from pipeline.data.mix import Mix
from pipeline.handover.audit import FrameworkTask, run_framework
from pipeline.handover.check import DIVIDED, check, key_of
from pipeline.handover.compare import Tokens
from pipeline.handover.environments import interpreter
from pipeline.handover.frameworks import framework
from pipeline.handover.plan import plan_handover
from pipeline.handover.write import TARGETS, handover, handover_text
from pipeline.model.load import load_data_tokenizer
from pipeline.settings import Profile, load_profile

SMALL = ["recipe=data_recipes/embedded.yaml", "mix.total=60", "training.max_steps=20"]


def profile(*settings: str) -> Profile:
    return load_profile("embedded", [*SMALL, *settings])


@pytest.fixture(scope="module")
def form() -> ChatFormat:
    return ChatFormat(load_data_tokenizer(profile().model))


@pytest.fixture(scope="module")
def mix() -> Mix:
    return build_profile_mix(profile())


@pytest.fixture(scope="module")
def handed(form: ChatFormat, mix: Mix, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("handed")
    for name in TARGETS:
        handover(profile(), mix, form, name, root / name, gpus=4)
    return lambda name: root / name


def rows_of(mix: Mix) -> set[Any]:
    return {key_of(Tokens(row["input_ids"], row["labels"])) for row in mix.train}


@pytest.mark.parametrize("name", ["trl", "axolotl"])
def test_parquet_holds_the_mix(name: str, handed: Callable[[str], Path], mix: Mix) -> None:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(handed(name) / "data" / "train.parquet").to_pylist()
    assert {key_of(Tokens(row["input_ids"], row["labels"])) for row in rows} == rows_of(mix)
    assert ("attention_mask" in rows[0]) == (name == "axolotl")


def test_llama_factory_gets_a_dataset_of_two_parts(handed: Callable[[str], Path], mix: Mix) -> None:
    from datasets import load_from_disk

    both = load_from_disk(str(handed("llama-factory") / "tokenized"))
    assert set(both) == {"train", "validation"} and len(both["validation"]) == len(mix.validation)
    assert {key_of(Tokens(row["input_ids"], row["labels"])) for row in both["train"]} == rows_of(mix)
    assert "train" in json.loads((handed("llama-factory") / "dataset_info.json").read_text())


def test_ms_swift_gets_text_that_is_the_same_tokens(handed: Callable[[str], Path], mix: Mix, form: ChatFormat) -> None:
    lines = [json.loads(line) for line in (handed("ms-swift") / "train.jsonl").read_text().splitlines()]
    made = set()
    for line in lines:
        question, answer = (message["content"] for message in line["messages"])
        prompt, target = form.encode([question, answer + form.style.end])
        made.add(key_of(Tokens(prompt + target, [IGNORE_INDEX] * len(prompt) + target)))
    assert made == rows_of(mix) and len(lines) == len(mix.train)


def test_a_row_that_text_cannot_carry_is_named(form: ChatFormat, mix: Mix, tmp_path: Path) -> None:
    """A document that quotes a control token: as text it would be one."""
    quoted = form.encode(
        ["<|im_start|>user\nWhat ends a turn?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"]
    )[0]
    answer = [token for part in ("<", "|im_end|>", "") for token in form.encode([part])[0]] + form.encode(
        ["<|im_end|>"]
    )[0]
    row = {"input_ids": quoted + answer, "labels": [IGNORE_INDEX] * len(quoted) + answer}
    first = mix.train[0]
    changed = mix.train.select([0]).map(lambda _: {**first, **row}).flatten_indices()
    part = type(mix.train_part)(1, lambda: iter([changed.data.table]))
    other = Mix(part, mix.validation_part, mix.rejected_rows, mix.manifest)
    record = handover(profile(), other, form, "ms-swift", tmp_path / "x")
    (entry,) = [json.loads(line) for line in (tmp_path / "x" / "left_out.jsonl").read_text().splitlines()]
    assert record["left_out"] == 1 and entry["reason"] == "not_as_text" and entry["row"] == 0
    assert "left_out.jsonl names each" in (tmp_path / "x" / "README.md").read_text()


def test_configurations_mean_the_same(handed: Callable[[str], Path]) -> None:
    read = {name: yaml.safe_load((handed(name) / "train.yaml").read_text()) for name in TARGETS}
    names = {
        "rate": ["learning_rate"],
        "steps": ["max_steps"],
        "warm": ["warmup_steps"],
        "seed": ["seed"],
        "rank": ["lora_r", "lora_rank"],
        "alpha": ["lora_alpha"],
        "limit": ["max_length", "cutoff_len", "sequence_len"],
        "batch": ["per_device_train_batch_size", "micro_batch_size"],
        "schedule": ["lr_scheduler_type", "lr_scheduler"],
    }
    wanted = {"rate": 1e-3, "steps": 20, "warm": 1, "seed": 3407, "rank": 32, "alpha": 64}
    wanted |= {"limit": 256, "batch": 2, "schedule": "cosine"}
    for target, config in read.items():
        found = {what: next(config[key] for key in keys if key in config) for what, keys in names.items()}
        assert found == wanted, target
        assert config["bf16"] is False  # the profile computes in float32


def test_several_gpus(handed: Callable[[str], Path]) -> None:
    for name in TARGETS:
        record = json.loads((handed(name) / "handover.json").read_text())
        assert set(record["commands"]) == {"ZeRO-2", "ZeRO-3", "FSDP2"}
        assert json.loads((handed(name) / "zero3.json").read_text())["zero_optimization"]["stage"] == 3
        assert any("4 bit" in text for text in record["not_carried"])
        for line in record["commands"].values():
            for word in line.split():
                file = word.removeprefix("deepspeed=")
                if file.endswith((".yaml", ".json")):
                    assert (handed(name) / file).exists(), (name, word)
    assert not (handed("ms-swift") / "fsdp2.yaml").exists()  # its command names settings that it brings along


@pytest.mark.parametrize(
    ("gpus", "settings", "wanted"),
    [
        (1, [], (8, 1)),
        (4, [], (2, 1)),
        (4, ["training.gradient_accumulation_steps=8"], (8, 2)),
        (2, ["training.gradient_accumulation_steps=3"], (4, 3)),
    ],
)
def test_the_global_batch_stays(gpus: int, settings: list[str], wanted: tuple[int, int]) -> None:
    made = plan_handover(profile(*settings), 100, gpus)
    assert (made.per_device, made.accumulation) == wanted
    t = profile(*settings).training
    before = t.per_device_train_batch_size * t.gradient_accumulation_steps
    assert made.per_device * made.accumulation * gpus == before


def test_epochs_become_steps() -> None:
    epochs = profile("training.max_steps=-1", "training.num_train_epochs=2")
    assert plan_handover(epochs, 101, 1).steps == 26  # 13 batches of 8 an epoch
    assert plan_handover(epochs, 101, 4).steps == 26


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.lr_scheduler_type=exponential"], "lr_scheduler_type=exponential"),
        (["training.kl_to_base=0.1"], "kl_to_base"),
        (["training.reasoning_first=0.3"], "reasoning_first"),
        (["method=prefix"], "method=prefix"),
        (["lora.trainable_token_indices=[3]"], "trainable_token_indices"),
    ],
)
def test_what_they_cannot_do_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"other frameworks cannot do .*{said}"):
        plan_handover(profile(*settings), 100, 1)


def test_bad_input(form: ChatFormat, mix: Mix, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot be dealt to 3 GPUs"):
        plan_handover(profile(), 100, 3)
    with pytest.raises(UserError, match="no target 'msswift'. Did you mean 'ms-swift'"):
        handover(profile(), mix, form, "msswift", tmp_path / "y")
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="nothing was changed"):
        handover(profile(), mix, form, "trl", tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
    words = ["data", "handover", "--to", "trl", "--output-dir", str(tmp_path / "z"), "--set", "training.kl_to_base=1"]
    assert main(words) == 2 and "kl_to_base" in capsys.readouterr().err and not (tmp_path / "z").exists()


@pytest.mark.slow
def test_trl_reads_what_the_mix_has(handed: Callable[[str], Path], mix: Mix) -> None:
    found = check(profile(), mix.train, "trl", handed("trl"))
    assert found["error"] == "" and found["different"] == []
    assert found["equal"] == found["rows"] == len(mix.train)
    assert found["several_gpus"] == dict.fromkeys(DIVIDED, "read")


@pytest.mark.slow
def test_a_configuration_for_several_gpus_that_is_refused(
    handed: Callable[[str], Path], mix: Mix, tmp_path: Path
) -> None:
    folder = shutil.copytree(handed("trl"), tmp_path / "trl")
    with (folder / "fsdp2.yaml").open("a", encoding="utf-8") as file:
        file.write("number_of_processes: 2\n")
    found = check(profile(), mix.train, "trl", folder)
    assert found["equal"] == found["rows"]  # the data are right all the same
    assert found["several_gpus"]["ZeRO-3"] == "read"
    assert re.match("FSDP2: trl failed: ValueError: .*unknown keys.*number_of_processes", found["error"])


FAKE = """#!/usr/bin/env python3
import json, sys
if sys.argv[1] == "-c": sys.exit("deepspeed" in sys.argv[2] and LACKING)
job = json.load(open(sys.argv[2]))
answers = {"ZeRO-2": {"divided": 2}, "ZeRO-3": {"divided": ZERO_3}, "FSDP2": {"divided": 2}}
for task in job["tasks"]:
    assert bool(task["command"]) == (task["name"] in answers)
done = {task["name"]: {"rows": [], **answers.get(task["name"], {})} for task in job["tasks"]}
json.dump({"versions": {"axolotl": "0"}, "tasks": done}, open(sys.argv[3], "w"))
"""


@pytest.mark.parametrize(
    ("lacking", "stage", "said", "error"),
    [
        (False, 3, "read", ""),
        (False, 2, "its parser reads stage or version 2", "ZeRO-3: its parser reads stage or version 2"),
        (True, 2, "not read: DeepSpeed is not installed in its environment", ""),
    ],
)
def test_what_a_parser_reads_is_held_to_its_title(
    lacking: bool, stage: int, said: str, error: str, handed: Callable[[str], Path], mix: Mix, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text(FAKE.replace("ZERO_3", str(stage)).replace("LACKING", str(lacking)))
    fake.chmod(0o755)
    found = check(profile(), mix.train, "axolotl", handed("axolotl"), fake)
    assert (found["several_gpus"]["FSDP2"], found["several_gpus"]["ZeRO-3"]) == ("read", said)
    assert found["error"] == error and found["version"] == "0"
    record = json.loads((handed("axolotl") / "handover.json").read_text()) | {"check": found}
    assert f"  ZeRO-3: {said}\n" in handover_text(record, tmp_path)


@pytest.mark.slow
def test_a_changed_row_is_named(form: ChatFormat, mix: Mix, handed: Callable[[str], Path], tmp_path: Path) -> None:
    """What is checked is what lies there: with other rows there, each of ours is missing."""
    few = mix.train.select(range(3))
    again = few.map(lambda row: {"labels": [*row["labels"][:-1], IGNORE_INDEX]})
    found = check(profile(), again, "trl", handed("trl"))
    assert found["equal"] == 0 and [entry["row"] for entry in found["different"]] == [0, 1, 2]


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "trl"])
def test_the_others_read_what_the_mix_has(name: str, handed: Callable[[str], Path], mix: Mix) -> None:
    try:
        interpreter(framework(name))
    except UserError as error:
        pytest.skip(str(error))
    found = check(profile(), mix.train, name, handed(name))
    assert found["error"] == "" and found["different"] == []
    assert found["equal"] == found["rows"] == len(mix.train)
    assert found["several_gpus"]["FSDP2"] == "read" and len(found["several_gpus"]) == 3
    lacking = "not read: DeepSpeed is not installed in its environment"
    assert {text for title, text in found["several_gpus"].items() if title != "FSDP2"} <= {"read", lacking}


def test_a_runner_that_dies_leaves_what_it_had(tmp_path: Path) -> None:
    """The second task ends the process: the first keeps its result, the third has one of its own."""
    fake = tmp_path / "python"
    fake.write_text(
        '#!/usr/bin/env python3\nimport json, sys\nif sys.argv[1] == "-c": sys.exit()\n'
        "job = json.load(open(sys.argv[2])); done = {}\n"
        'for task in job["tasks"]:\n'
        '    if task["name"] == "b": print("KeyError: boom"); sys.exit(1)\n'
        '    done[task["name"]] = {"rows": [{"input_ids": [1], "labels": [1]}]}\n'
        '    json.dump({"versions": {"trl": "0"}, "tasks": done}, open(sys.argv[3], "w"))\n'
    )
    fake.chmod(0o755)
    tasks = [FrameworkTask(name, {}, []) for name in "abc"]
    found = run_framework(framework("trl"), tasks, tmp_path, 8, tmp_path / "work", fake)
    assert [made.error for made in found] == ["", "trl failed: KeyError: boom", ""]
    assert [len(made.rows) for made in found] == [1, 0, 1]


@pytest.mark.parametrize("name", ["trl", "llama-factory"])
def test_accelerate_reads_the_fsdp2_file(name: str, handed: Callable[[str], Path]) -> None:
    """By its own parser, which refuses unknown keys; those of the section become its plugin's settings."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    path = handed(name) / "fsdp2.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.num_processes == 4
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known
    section = config.fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=section["fsdp_version"],
        reshard_after_forward=section["fsdp_reshard_after_forward"],
        state_dict_type=section["fsdp_state_dict_type"],
        auto_wrap_policy=section["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=[section["fsdp_transformer_layer_cls_to_wrap"]],
        cpu_ram_efficient_loading=section["fsdp_cpu_ram_efficient_loading"],
    )
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    broken = path.with_name("broken.yaml")
    broken.write_text(path.read_text() + "number_of_processes: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys.*number_of_processes"):
        load_config_from_file(str(broken))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", TARGETS)
def test_the_deepspeed_file_takes_its_values_from_the_training(
    name: str, stage: int, handed: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers' own reading of it: each "auto" is filled from the training's arguments, none is left, none disagrees."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class Reader(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """Without asking for DeepSpeed's package, of which it reads nothing here."""

        def __init__(self, path: Path) -> None:
            HfDeepSpeedConfig.__init__(self, str(path))
            self._dtype, self.mismatches = None, []

    config = yaml.safe_load((handed(name) / "train.yaml").read_text())
    size = config.get("per_device_train_batch_size", config.get("micro_batch_size"))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=config["gradient_accumulation_steps"],
        max_grad_norm=config["max_grad_norm"],
    )
    read = Reader(handed(name) / f"zero{stage}.json")
    assert (read.is_zero2(), read.is_zero3()) == (stage == 2, stage == 3)
    read.trainer_config_process(arguments)
    read.trainer_config_finalize(arguments, None, 20)
    assert '"auto"' not in json.dumps(read.config)
    assert read.config["train_micro_batch_size_per_gpu"] == size
    assert read.config["gradient_clipping"] == config["max_grad_norm"]
