"""Profiles and recipes: every setting of a run, read from YAML, checked, overridable one by one.

In: a profile's name or path, a recipe's path, ``key=value`` overrides. Out: ``Profile`` and ``Recipe``. An unknown key
is refused by name with the nearest known one, a value of the wrong type with the place where it stands.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import UserError, nearest
from pipeline.core.place import ROOT
from pipeline.settings.data import MixSettings, Recipe
from pipeline.settings.model import (
    METHODS,
    AdapterSettings,
    Ia3Settings,
    LoraSettings,
    Method,
    PrefixSettings,
    PromptSettings,
    method_section,
)
from pipeline.settings.profile import Profile
from pipeline.settings.section import PROFILES, Section

Profile.model_rebuild()  # two of its sections stand below it, as their rows are sources


S = TypeVar("S", bound=Section)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields at a place inside a settings class."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if hasattr(c, "model_fields")), None)
    return list(current.model_fields) if current is not None else []


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    parts = []
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, item["loc"][:-1])
            parts.append(f"unknown key {location!r}.{nearest(str(item['loc'][-1]), known)}")
        elif item["type"] == "value_error":
            parts.append(str(item["ctx"]["error"]))
        else:
            given = f" (given: {item['input']!r})" if not isinstance(item["input"], dict) else ""
            parts.append(f"{location}: {item['msg'][0].lower()}{item['msg'][1:]}{given}")
    return f"{where}: " + "; ".join(parts)


def parse(model: type[S], data: Any, where: str) -> S:
    """Check ``data`` against a settings class.

    Raises:
        UserError: one sentence with every problem, each with its place and, for unknown keys, the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_sentence(error, model, where)) from error


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key given twice is an error, and so, with its place, is a value such as 2024-13-45."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        # Here and not when the mapping is made: by then, keys merged by << stand among its own.
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name = (key.tag, key.value)
            if name in lines:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice, first in line {lines[name]}", key.start_mark
                )
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # from the makers of dates, numbers and booleans
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} cannot be read as {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where} is not valid YAML: {place}{error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply.") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file (safe loader).

    Raises:
        UserError: missing, unreadable or not YAML, or a key is given twice (with line and column).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return _parse_yaml(text, str(path))


def locate(path: str) -> Path:
    """A relative path is looked for in the working directory first, then in the project."""
    here = Path(path).expanduser()
    return here if here.is_absolute() or here.exists() else ROOT / path


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Set dotted keys: ``["training.learning_rate=1e-4"]``. Values are YAML (numbers, true/false, null, lists).

    Raises:
        UserError: an override without ``=``, or a value that is not YAML. Unknown keys are left to the check that follows.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set needs key=value, for example training.learning_rate=1e-4; given: {text!r}.")
        parsed: Any = _parse_yaml(value, f"--set {text}") if value.strip() else None
        if isinstance(parsed, str):
            with contextlib.suppress(ValueError):
                parsed = float(parsed)  # YAML 1.1 reads 1e-4 as text
        target = data
        *parents, last = key.strip().split(".")
        for parent in parents:
            if not isinstance(target.setdefault(parent, {}), dict):
                raise UserError(f"--set {key}: {parent!r} is a single value, it has no keys below it.")
            target = target[parent]
        target[last] = parsed
    return data


_SECTIONS: dict[str, type[Section]] = {
    "lora": LoraSettings,
    "adapter": AdapterSettings,
    "prefix": PrefixSettings,
    "prompt": PromptSettings,
    "ia3": Ia3Settings,
}


def _settle_method(data: dict[str, Any], overrides: list[str]) -> None:
    """Let the method decide what is not given beside it, and refuse options of other methods.

    What counts as given: the overrides; and, where the file itself names the method, the file. A file made for another
    method keeps its options to itself: ``--set method=prefix`` drops the file's section ``lora`` and its precision.

    Raises:
        UserError: an option of another method.
    """
    method = data.get("method")
    if method is not None and method not in METHODS:
        return  # the check of the types names it
    given = {text.partition("=")[0].strip() for text in overrides}
    sections = {key.partition(".")[0] for key in given}
    from_file = "method" not in given
    in_force: Method = method or "lora"
    own = method_section(in_force)
    for name, kind in _SECTIONS.items():
        content = data.get(name)
        if name == own or content is None:
            continue
        default = kind().model_dump()
        # A profile that was written out by a run holds every section, the unused ones as they are by default.
        unused = isinstance(content, dict) and all(key in default and default[key] == content[key] for key in content)
        if name in sections or (from_file and not unused):
            needed = [m for m in METHODS if method_section(m) == name]
            raise UserError(
                f"{name} holds options of method {' or '.join(needed)}, but the method is {in_force}; leave them out, or set "
                f"method={needed[0]}."
            )
        del data[name]
    if method is None:
        return

    def decide(section: str, key: str, value: bool) -> None:
        """Set what is not given beside the method."""
        content = data.setdefault(section, {})
        said = {section, f"{section}.{key}"} & given or (from_file and isinstance(content, dict) and key in content)
        if isinstance(content, dict) and not said:
            content[key] = value

    decide("model", "load_in_4bit", method == "qlora")
    if method == "rslora":
        decide("lora", "use_rslora", True)


def profile_file(name: str, beside: Path | None = None) -> Path:
    """The file of a profile: one of the project's by its name, else a YAML file by its path.

    Args:
        beside: a folder in which a relative path is looked for first.

    Raises:
        UserError: there is none (names the nearest).
    """
    path = PROFILES / f"{name}.yaml"
    if path.exists():
        return path
    for candidate in ([beside / name] if beside else []) + [Path(name)]:
        if candidate.suffix and candidate.exists():
            return candidate
    names = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    raise UserError(f"There is no profile {name!r}.{nearest(name, names)} Known: {', '.join(names)}.")


def _over(base: Any, own: Any) -> Any:
    """Sections are merged key by key; everything else, lists too, is replaced."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return {**base, **{key: _over(base.get(key), value) for key, value in own.items()}}


def read_profile(path: Path, under: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a profile, over those of the profile that it extends (``extends: NAME or FILE``).

    Args:
        under: the files that extend this one, the first one first.

    Returns:
        With ``based_on``: the names of what it extends, the nearest first.

    Raises:
        UserError: no such profile, no keys and values, no name of its own, or profiles that extend each other.
    """
    chain = (*under, path.resolve())
    if path.resolve() in under:
        round_trip = " → ".join(file.name for file in chain)
        raise UserError(f"{under[0]}: a profile cannot extend itself ({round_trip}); take one `extends` out.")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} should hold keys and values.")
    if "extends" not in data:
        return data
    parent = data.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends should name one profile, given: {parent!r}.")
    if not data.get("name"):
        raise UserError(f"{path} extends {parent} and needs a name of its own; add `name: …`.")
    try:
        file = profile_file(parent, path.parent)
    except UserError as error:
        raise UserError(f"{path}: extends: {error}") from error
    base = read_profile(file, chain)
    return _over(base, {**data, "based_on": [base.get("name", parent), *base.get("based_on", [])]})


def load_profile(name: str, overrides: list[str] | None = None) -> Profile:
    """Load a profile by name (``embedded``) or by path, with what it extends and with overrides.

    Raises:
        UserError: no such profile (names the nearest), or a value that does not pass (names the place).
    """
    data = read_profile(profile_file(name))
    apply_overrides(data, overrides or [])
    _settle_method(data, overrides or [])
    return parse(Profile, data, f"profile {name}" + (" with --set" if overrides else ""))


def load_recipe(path: str, mix: MixSettings | None = None) -> Recipe:
    """Load a recipe; ``mix`` overrides its shares, unit and total.

    A chat share is divided among the sources of kind ``chat`` in the proportion that the recipe gives them, the rest
    among the others likewise.

    Raises:
        UserError: missing file, bad value, or a chat share where the recipe lacks one of the two sides.
    """
    data = read_yaml(locate(path))
    if not isinstance(data, dict):
        raise UserError(f"{path} should hold keys and values.")
    recipe = parse(Recipe, data, f"recipe {path}")
    if mix is None:
        return recipe
    _set_local(recipe, mix, path)
    _leave_out(recipe, mix, path)
    if mix.shares is not None:
        _set_shares(recipe, mix, path)
    if mix.chat_share is not None:
        chat = [s for s in recipe.sources if s.kind == "chat"]
        rest = [s for s in recipe.sources if s.kind != "chat"]
        for side, share in ((chat, mix.chat_share), (rest, 1 - mix.chat_share)):
            if not side and share > 0:
                raise UserError(
                    f"recipe {path}: chat_share={mix.chat_share:g} needs both a chat source and another one."
                )
            before = sum(s.share for s in side)
            for source in side:
                source.share = share * source.share / before if before else share / len(side)
    recipe.unit = mix.unit or recipe.unit
    recipe.total = mix.total or recipe.total
    return recipe


def _set_local(recipe: Recipe, mix: MixSettings, path: str) -> None:
    """Local files in the place of hubs' sets (``source: base``: of its questions), by ``mix.local``; the rest stays as it is."""
    names = [source.name for source in recipe.sources]
    for name, place in mix.local.items():
        if name not in names:
            raise UserError(f"mix.local: recipe {path} has no source {name!r}.{nearest(name, names)}")
        source = recipe.sources[names.index(name)]
        read = source.questions or source
        read.source, read.path = "local", place
        read.subset, read.revision, read.streaming = None, None, False


def _leave_out(recipe: Recipe, mix: MixSettings, path: str) -> None:
    """Take the sources that ``mix.without`` names, and without ``mix.rehearsal`` the base, out of the recipe: none is read."""
    names = [source.name for source in recipe.sources]
    for name in mix.without:
        if name not in names:
            raise UserError(f"mix.without: recipe {path} has no source {name!r}.{nearest(name, names)}")
    out = {*mix.without, *(s.name for s in recipe.sources if s.source == "base" and not mix.rehearsal)}
    kept = [source for source in recipe.sources if source.name not in out]
    total = sum(source.share for source in kept)
    if not total:
        raise UserError(f"mix.without and mix.rehearsal leave no source with a share in recipe {path}.")
    for source in kept if out else []:
        source.share = source.share / total
    recipe.sources = kept


def _set_shares(recipe: Recipe, mix: MixSettings, path: str) -> None:
    shares = mix.shares or {}
    if mix.chat_share is not None:
        raise UserError("mix.shares and mix.chat_share both say what the shares are; give one of them.")
    names = [source.name for source in recipe.sources]
    for name in shares:
        if name not in names:
            raise UserError(f"mix.shares: recipe {path} has no source {name!r}.{nearest(name, names)}")
    if abs(sum(shares.values()) - 1) > 1e-6 or any(share < 0 for share in shares.values()):
        parts = " + ".join(f"{share:g} ({name})" for name, share in shares.items())
        raise UserError(f"mix.shares: the shares must be at least 0 and add up to 1, given {parts or 'none'}.")
    for source in recipe.sources:
        source.share = shares.get(source.name, 0.0)
