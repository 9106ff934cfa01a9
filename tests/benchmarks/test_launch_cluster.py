"""The files that start a run elsewhere: read by their own tools where these are light, else by what is known of their form."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "launch" / "cluster"
DOCKER = sorted((ROOT / "launch" / "docker").glob("*.Dockerfile"))
DEVCONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
PINS = {"skypilot": "skypilot==0.14.1", "dstack": "dstack==0.22.5"}
SKY = """
import sys, yaml
from sky import Task
task = Task.from_yaml(sys.argv[1])
print(task.name, task.num_nodes, sorted(str(a) for r in task.resources for a in (r.accelerators or {})))
"""
DSTACK = """
import sys, yaml
from dstack._internal.core.models.configurations import parse_apply_configuration
made = parse_apply_configuration(yaml.safe_load(open(sys.argv[1])))
print(type(made).__name__, made.name, made.resources.gpu.memory.min)
"""


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def commands() -> list[list[str]]:
    """Every ``-m pipeline`` that the files start, as words, variables filled in."""
    (sky,), (dstack,), (_, job) = read("skypilot.yaml"), read("dstack.yaml"), read("kubernetes.yaml")
    texts = [sky["run"], *dstack["commands"], (CLUSTER / "slurm.sh").read_text(encoding="utf-8")]
    lines = [line for text in texts for line in text.splitlines() if "-m pipeline" in line and not line.startswith("#")]
    found = []
    for line in lines:
        words = shlex.split(re.sub(r"\$\{?(\w+)\}?", lambda m: {"PROFILE": "qwen3-8b"}.get(m[1], "x"), line))
        found.append(words[words.index("pipeline") + 1 :])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return [*found, container["args"]]


def test_each_starts_a_run_that_goes_on() -> None:
    made = [parser().parse_args(words) for words in commands()]
    assert len(made) == 5
    for args in made:
        assert args.command == "run" and args.resume and args.profile == "qwen3-8b"


def test_slurm() -> None:
    path = CLUSTER / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", path.read_text(encoding="utf-8"), re.M))
    assert options["nodes"] == options["ntasks-per-node"] == "1" and "requeue" in options
    assert len(options) == path.read_text(encoding="utf-8").count("#SBATCH")


def test_kubernetes() -> None:
    claim, job = read("kubernetes.yaml")
    assert claim["kind"] == "PersistentVolumeClaim" and (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")  # a Job takes no other
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v} == {
        claim["metadata"]["name"]
    }


def test_kubernetes_by_its_published_schemas() -> None:
    tool = pytest.importorskip("kubernetes_validate", reason='not installed: pip install ".[launch]"')
    version = tool.latest_version()
    for document in read("kubernetes.yaml"):
        tool.validate(document, version, strict=True)
    _, job = read("kubernetes.yaml")
    job["spec"]["backofLimit"] = 3
    with pytest.raises(tool.ValidationError, match="backofLimit"):
        tool.validate(job, version, strict=True)


def installed(name: str, how: str) -> str:
    """The program beside this interpreter or on the path; else the test is skipped."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {how}")
    return found


def test_docker_by_hadolint(tmp_path: Path) -> None:
    """Its parser and its rules; where a file breaks one on purpose, the file says so and why."""
    words = [installed("hadolint", 'pip install ".[launch]"'), "--no-color"]
    done = subprocess.run([*words, *map(str, DOCKER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (DOCKER[0].read_text().replace("WORKDIR", "WORKDR"), "FROM python\nENTRYPOINT python -m pipeline\n"):
        wrong = tmp_path / "Dockerfile"
        wrong.write_text(text)
        assert subprocess.run([*words, str(wrong)], capture_output=True).returncode != 0


@pytest.mark.parametrize("path", DOCKER, ids=lambda path: path.stem)
def test_docker(path: Path) -> None:
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    assert lines[0].startswith("FROM ") and {line.split()[0] for line in lines} <= known
    for line in lines:
        if line.split()[0] in ("ENTRYPOINT", "CMD"):
            assert json.loads(line.split(maxsplit=1)[1])
        if line.startswith("RUN "):
            done = subprocess.run(["bash", "-n", "-c", line.removeprefix("RUN ")], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_devcontainer() -> None:
    settings = json.loads(DEVCONTAINER.read_text(encoding="utf-8"))
    assert (DEVCONTAINER.parent / settings["build"]["dockerfile"]).resolve() in DOCKER
    assert settings["postCreateCommand"] == "make setup"


def test_devcontainer_by_its_own_command_line() -> None:
    """It reads the file, and fills in where the project lies in the container; no Docker is needed for that."""
    program = installed("devcontainer", "npm install --global @devcontainers/cli@0.89.0")
    words = [
        program,
        "read-configuration",
        "--workspace-folder",
        str(ROOT),
        "--docker-path",
        shutil.which("true") or "",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    found, given = read["configuration"], json.loads(DEVCONTAINER.read_text(encoding="utf-8"))
    for key in ("name", "build", "hostRequirements", "postCreateCommand"):
        assert found[key] == given[key]
    python = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python == f"{read['workspace']['workspaceFolder']}/.venv/bin/python"


def test_the_page_names_every_file() -> None:
    page = (ROOT / "docs" / "many_gpus.md").read_text(encoding="utf-8")
    for path in [*CLUSTER.iterdir(), ROOT / ".devcontainer/devcontainer.json"]:
        assert str(path.relative_to(ROOT)) in page
    for path in DOCKER:
        assert path.name in page or path.stem == "dev"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("tool", "code", "said"),
    [("skypilot", SKY, "hybrid-course 1"), ("dstack", DSTACK, "TaskConfiguration hybrid-course 24GB")],
)
def test_its_own_tool_reads_it(tool: str, code: str, said: str, tmp_path: Path) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    words = [uv, "run", "--quiet", "--no-project", "--python", sys.executable, "--with", PINS[tool], "python"]
    ready = subprocess.run([*words, "-c", ""], capture_output=True, text=True, cwd=tmp_path)
    if ready.returncode:
        pytest.skip(f"{PINS[tool]} cannot be had: {ready.stderr.strip()[-200:]}")
    file = CLUSTER / f"{tool}.yaml"
    done = subprocess.run([*words, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and said in done.stdout, done.stderr[-800:]
