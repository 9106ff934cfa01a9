"""The launch files, read by the parsers of the libraries that will read them; no GPU is needed for that."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.main import parser as pipeline_parser

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


def launched(path: Path) -> Namespace:
    """The arguments of ``accelerate launch`` with this file, after its own checks."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = ["--config_file", str(path), "-m", "pipeline", "train"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Keys of the nested sections that ``accelerate launch`` has no option for: it takes them without a word."""
    from accelerate.commands.launch import launch_command_parser

    known = set(vars(launch_command_parser().parse_args(["script"])))
    return [k for name in ("fsdp_config", "deepspeed_config") for k in config.get(name, {}) if k not in known]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text(encoding="utf-8"))


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["ddp", "deepspeed_zero2", "fsdp2"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_file_and_knows_every_key(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.num_processes == 2 and config.num_machines == 1
    assert unknown_keys(read(path.name)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_in_the_header_are_ones_that_both_command_lines_take(path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    header = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [line for line in header if line.startswith("accelerate launch ")]
    assert len(commands) == 1
    args = launch_command_parser().parse_args(shlex.split(commands[0])[2:])
    assert Path(args.config_file) == path.relative_to(ROOT) and args.module and args.training_script == "pipeline"
    parsed = pipeline_parser().parse_args(args.training_script_args)
    assert parsed.command == "train"
    for line in header:
        if match := re.match(r"python -m pipeline ([^#]+)", line):
            assert pipeline_parser().parse_args(shlex.split(match[1])).output_dir == parsed.output_dir


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_unknown_key_is_refused(path: Path, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = read(path.name)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(config | {"number_of_processes": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys.*number_of_processes"):
        load_config_from_file(str(wrong))
    changed = copy.deepcopy(config)
    changed.setdefault("fsdp_config", {})["fsdp_versoin"] = 2
    assert unknown_keys(changed) == ["fsdp_versoin"]


def test_ddp_starts_plain_data_parallel_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils.launch import prepare_multi_gpu_env

    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)
    args = launched(LAUNCH / "ddp.yaml")
    environment = prepare_multi_gpu_env(args)
    assert args.multi_gpu and args.nproc_per_node == "2"
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(environment)


def test_fsdp2_becomes_accelerates_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from transformers import Qwen3Config, Qwen3ForCausalLM

    environment = prepare_multi_gpu_env(launched(LAUNCH / "fsdp2.yaml"))
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT" and plugin.cpu_ram_efficient_loading is False
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, hidden_size=64, vocab_size=64))
    plugin.set_auto_wrap_policy(model)  # fails where the layer's class is not in the model
    layer = type(model.model.layers[0]).__name__
    assert plugin.transformer_cls_names_to_wrap == [layer] == ["Qwen3DecoderLayer"]


def test_a_wrong_layer_name_is_refused() -> None:
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from transformers import Qwen3Config, Qwen3ForCausalLM

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen3Layer"],
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, hidden_size=64, vocab_size=64))
    with pytest.raises(ValueError, match="Qwen3Layer"):
        plugin.set_auto_wrap_policy(model)


def test_deepspeed_file_is_found_and_is_zero_2_with_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    monkeypatch.chdir(ROOT)
    config = read("deepspeed_zero2.yaml")
    assert "mixed_precision" not in config, "accelerate refuses it beside a DeepSpeed file"
    section = config["deepspeed_config"]
    assert set(section) == {"deepspeed_config_file", "zero3_init_flag"}, "the rest stands in the file"
    parsed = HfDeepSpeedConfig(section["deepspeed_config_file"])
    assert parsed.is_zero2() and parsed.is_offload() and not parsed.is_zero3()


IN_DEEPSPEED = """
import copy, json, sys
from deepspeed.runtime.config import DeepSpeedConfig
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

args = TrainingArguments(output_dir=sys.argv[2], use_cpu=True, per_device_train_batch_size=2,
                         gradient_accumulation_steps=8, learning_rate=2e-4, weight_decay=0.01, max_grad_norm=1.0)
config = HfTrainerDeepSpeedConfig(sys.argv[1])
config.trainer_config_process(args)
config.trainer_config_finalize(args, None, 100)
filled = config.config
parsed = DeepSpeedConfig(copy.deepcopy(filled))
refused = []
for path, key in (("zero_optimization", "stages"), ("zero_optimization.offload_optimizer", "divice"), ("bf16", "enable")):
    wrong = copy.deepcopy(filled)
    place = wrong
    for part in path.split("."):
        place = place[part]
    place[key] = 1
    try:
        DeepSpeedConfig(wrong)
    except ValueError as error:
        refused.append(key)
offload = parsed.zero_config.offload_optimizer
device = str(getattr(offload.device, "value", offload.device))
print(json.dumps({"filled": filled, "stage": parsed.zero_optimization_stage, "device": device,
                  "clipping": parsed.gradient_clipping, "batch": parsed.train_batch_size, "refused": refused}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: accelerate would import it in every training. To run this test: "
    "DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation --target DIR deepspeed==0.19.8 hjson==3.1.0 "
    "py-cpuinfo==9.0.0 msgpack==1.2.4 ninja==1.13.2, and put DIR into PYTHONPATH",
)
def test_deepspeed_itself_takes_the_file_and_refuses_wrong_keys(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IN_DEEPSPEED, str(LAUNCH / "zero2_offload.json"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert '"auto"' not in json.dumps(found["filled"])
    assert found["stage"] == 2 and found["device"] == "cpu"
    assert found["batch"] == 16 and found["clipping"] == 1.0
    assert found["filled"]["optimizer"]["params"]["lr"] == 2e-4
    assert found["refused"] == ["stages", "divice", "enable"]
