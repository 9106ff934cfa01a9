"""pipeline/core/versions.py: comparing versions, and importing Unsloth."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import versions
from pipeline.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What is installed, as the test wants it: start from the pins, change or remove entries."""
    table: dict[str, str | None] = dict(versions.pinned())

    def version(name: str) -> str:
        found = table.get(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return table


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )


def _write_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(versions, "REQUIREMENTS", path)


def test_this_environment_is_as_pinned() -> None:
    versions.check()
    assert set(versions.installed()) == set(versions.pinned())


def test_every_line_of_the_requirements_is_a_pin() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert len(versions.pinned()) == sum(1 for line in lines if line and not line.startswith("#"))


def test_pins_are_read_with_comments_and_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_pins(tmp_path, monkeypatch, "# head\n\nalpha==1.0  # why\nbeta_two==2.0.post1\n")
    assert versions.pinned() == {"alpha": "1.0", "beta_two": "2.0.post1"}


@pytest.mark.parametrize("line", ["alpha", "alpha>=1.0", "alpha==1.0,<2", "-r other.txt", "alpha=="])
def test_a_line_that_is_no_pin_is_named(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_pins(tmp_path, monkeypatch, f"first==1\n{line}\n")
    with pytest.raises(UserError, match=r"requirements\.txt:2 is not of the form name==version"):
        versions.pinned()


def test_missing_requirements_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "REQUIREMENTS", tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        versions.check("torch")


def test_wrong_version_names_package_found_wanted_and_command(metadata: dict[str, str | None]) -> None:
    metadata["trl"] = "0.9.0"
    with pytest.raises(UserError) as caught:
        versions.check("trl", "peft")
    message = str(caught.value)
    assert "trl is 0.9.0" in message
    assert versions.pinned()["trl"] in message
    assert "make setup" in message
    assert "peft" not in message
    assert "\n" not in message


def test_missing_package_is_named(metadata: dict[str, str | None]) -> None:
    metadata["datasets"] = None
    assert versions.installed()["datasets"] is None
    with pytest.raises(UserError, match=r"datasets is not installed \(.+ is needed\).*make setup"):
        versions.check("datasets")


def test_other_versions_may_be_tried_but_not_missing_ones(
    metadata: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIPELINE_ANY_VERSIONS", "1")
    metadata["torch"] = "2.11.0+cu130"
    versions.check("torch", "datasets")
    assert "torch is 2.11.0+cu130" in caplog.text
    metadata["datasets"] = None
    with pytest.raises(UserError, match="datasets is not installed"):
        versions.check("torch", "datasets")


def test_all_that_is_wrong_is_said_at_once(metadata: dict[str, str | None]) -> None:
    metadata.update({"torch": "1.0", "rich": None})
    with pytest.raises(UserError, match=r"torch is 1\.0.*rich is not installed"):
        versions.check()


def test_only_the_named_packages_count(metadata: dict[str, str | None]) -> None:
    metadata["trl"] = "0.9.0"
    versions.check("peft")


def test_a_build_label_does_not_count(metadata: dict[str, str | None]) -> None:
    wanted = versions.pinned()["torch"]
    for label in ("", "+cpu", "+cu130"):
        metadata["torch"] = wanted + label
        versions.check("torch")
    for other in (f"{wanted}1", f"{wanted}.post1", "1.0+cpu"):
        metadata["torch"] = other
        with pytest.raises(UserError, match="torch is"):
            versions.check("torch")


def test_spelling_of_a_name_does_not_matter(metadata: dict[str, str | None]) -> None:
    versions.check("unsloth-zoo", "Unsloth.Zoo", "PyYAML")


def test_a_name_that_is_no_dependency_is_refused() -> None:
    with pytest.raises(ValueError, match="no-such-thing"):
        versions.check("no-such-thing")


def test_the_complete_list_agrees_with_the_direct_one() -> None:
    text = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8")
    complete: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE):
        complete.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-export.txt"):
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / file).read_text("utf-8"), re.MULTILINE):
            assert complete.get(re.sub(r"[-_.]+", "-", name).lower()) == {version}, f"{name}: run `make lock`"
    for name in ("torchvision", "xformers", "triton"):
        assert name not in complete
    assert not [name for name in complete if name.startswith(("nvidia-cu", "nvidia-nccl", "cuda-"))]


def test_checking_imports_nothing() -> None:
    done = _python(
        "import sys\n"
        "from pipeline.core import versions\n"
        "versions.check()\n"
        "print(sorted({'torch', 'unsloth', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_quiet_keeps_output_off_the_screen_and_logs_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = sys.stdout, sys.stderr
    logger = logging.getLogger("tests.quiet")
    logger.propagate = False
    with caplog.at_level(logging.DEBUG, logger="pipeline.core.versions"), versions.quiet():
        print("a banner")
        print("a warning", file=sys.stderr)
        handler = logging.StreamHandler()  # keeps the stream it finds, as libraries do
        logger.addHandler(handler)
        assert sys.stderr.encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records] == ["a banner", "a warning"]
    try:
        logger.warning("later")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "later\n"


def test_quiet_ends_with_the_block_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), versions.quiet():
        raise RuntimeError
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_quiet_survives_a_library_that_wraps_the_stream() -> None:
    class Wrapper:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    before = sys.stderr
    with versions.quiet():
        sys.stderr = Wrapper(sys.stderr)  # type: ignore[assignment]
        assert sys.stderr.encoding == before.encoding
    assert sys.stderr is before


def _failing_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def import_module(name: str) -> None:
        print("half a banner")
        raise error

    monkeypatch.setattr(versions.importlib, "import_module", import_module)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no module named x\nsecond line"),
        NotImplementedError("needs a GPU"),
        RuntimeError("operator does not exist"),
        OSError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_an_import_that_fails_becomes_one_sentence(
    error: Exception,
    metadata: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _failing_import(monkeypatch, error)
    with pytest.raises(UserError) as caught:
        versions.import_unsloth()
    message = str(caught.value)
    assert str(error).splitlines()[0] in message
    assert "make setup" in message
    assert "\n" not in message
    assert caught.value.__cause__ is error
    assert capsys.readouterr() == ("", "")


def test_a_torchvision_that_does_not_fit_is_named(
    metadata: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata["torchvision"] = "0.29.2"
    error = ImportError("its compiled operators do not load")
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    _failing_import(monkeypatch, error)
    with pytest.raises(UserError, match=r"torchvision 0\.29\.2 .*pip uninstall --yes torchvision"):
        versions.import_unsloth()


def test_a_wrong_version_is_said_before_anything_is_imported(
    metadata: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata["transformers"] = "4.0.0"
    _failing_import(monkeypatch, AssertionError("imported all the same"))
    with pytest.raises(UserError, match=r"transformers is 4\.0\.0"):
        versions.import_unsloth()


@pytest.mark.slow
def test_unsloth_imports_without_a_word() -> None:
    done = _python("from pipeline.core import versions; assert versions.import_unsloth().__name__ == 'unsloth'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_unsloth_forbidden_to_use_the_cpu_is_explained() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = _python(
        "from pipeline.core import errors; from pipeline.core import versions\n"
        "try:\n    versions.import_unsloth()\n"
        "except errors.UserError as error:\n    print(error)",
        UNSLOTH_DISABLE_CPU_FALLBACK="1",
    )
    assert "UNSLOTH_DISABLE_CPU_FALLBACK" in done.stdout, done.stderr
    assert "unset it" in done.stdout


def test_a_record_names_what_is_installed(metadata: dict[str, str | None]) -> None:
    metadata["trl"] = None
    here = versions.versions_here()
    assert "trl" not in here and here["unsloth"] == metadata["unsloth"]
    assert here["python"] == ".".join(map(str, sys.version_info[:3]))
