"""The mix of a profile, and a mix in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.place import cache_dir
from pipeline.core.redact import masked
from pipeline.data.chat_format import ChatFormat
from pipeline.data.mix import Mix, build_mix
from pipeline.data.pools import build_pools
from pipeline.data.rehearsal.rehearse import rehearsed, replies_wanted
from pipeline.model.load import load_data_tokenizer, load_model
from pipeline.settings import Profile, Recipe, load_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.rehearsal.ask import Answers
    from pipeline.data.rehearsal.rehearse import Load


def loader(profile: Profile) -> Load:
    """Loads the profile's base."""
    return lambda: load_model(profile.model, profile.seed, profile.chosen_method)


def profile_mix(
    profile: Profile,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    load: Load | None = None,
    other: Answers | None = None,
) -> Mix:
    """The mix of a recipe under a profile; the base is asked first where the recipe wants its answers.

    Args:
        load: gives the base, for sources that are its answers; None: it is loaded when a first answer is missing.
        other: answers in the place of a model in this process (``pipeline.evaluation.engine.other_answers``).
    """
    ready, records = rehearsed(profile, recipe, tokenizer, load or loader(profile), cache_dir(), other)
    data, cache = profile.data, cache_dir()
    form = ChatFormat(tokenizer, data.empty_think, data.loss_on)
    pools = build_pools(ready, form, profile.length_limit, data.turns, data.workers, cache, data.too_long)
    mix = build_mix(ready, pools, profile.seed, data.validation_fraction, cache)
    if records:
        # Without a share, nothing is asked, and nothing is in the mix.
        taken = {source.name for source in ready.sources}
        own = recipe.model_copy(update={"sources": [source for source in recipe.sources if source.name in taken]})
        mix.manifest["recipe"] = masked(own.model_dump())
        # Seconds are of the machine and the moment: the same mix has the same manifest.
        mix.manifest["rehearsal"] = {
            name: {k: v for k, v in r.items() if k not in ("seconds", "warnings")} for name, r in records.items()
        }
        mix.manifest["warnings"] += [text for record in records.values() for text in record["warnings"]]
    return mix


class Unanswered(UserError):
    """The mix takes answers that the base has not given yet, and it may not be asked."""


def _not_asked() -> Any:
    raise Unanswered(
        "The mix takes answers of the base that it has not given yet, and nothing is asked here. Let it answer first: "
        "python -m pipeline rehearse, with the same profile and settings."
    )


def build_profile_mix(profile: Profile, ask: bool = True, other: Answers | None = None) -> Mix:
    """The mix of a profile's recipe with its tokenizer; nothing is written but the cache of tokenised pools.

    Args:
        ask: let the base answer, where the recipe wants its answers. other: see ``profile_mix``.

    Raises:
        Unanswered: not ``ask``, and answers are missing.
    """
    recipe = load_recipe(profile.recipe, profile.mix)
    tokenizer = load_data_tokenizer(profile.model)
    return profile_mix(profile, recipe, tokenizer, None if ask else _not_asked, other)


def counted_mix(profile: Profile) -> tuple[Mix, bool]:
    """The mix as far as it is known without asking the base, and whether that is all of it.

    Where answers are missing, rows, tokens and shares are those of the mix without them, and a warning of the mix says so.
    """
    try:
        return build_profile_mix(profile, ask=False), True
    except Unanswered:
        plain = profile.model_copy(update={"mix": profile.mix.model_copy(update={"rehearsal": False})})
        mix = build_profile_mix(plain, ask=False)
    own = [s for s in load_recipe(profile.recipe, profile.mix).sources if s.source == "base" and s.share > 0]
    counts = [replies_wanted(source) for source in own]
    known = [count for count in counts if count is not None]
    many = f"{sum(known):,} questions" if len(known) == len(counts) else "as many questions as its set has"
    mix.manifest["warnings"].append(
        f"the base is asked first ({many}), and what it will answer is not known: rows, tokens and shares are counted here "
        "without its answers"
    )
    return mix, False


def _detected(source: dict[str, Any]) -> str:
    """The formats that the rows were read as, and why."""
    found = [f"{f['rows']:,} as {name} ({f['because']})" for name, f in source["formats"].items()]
    return f"; {', '.join(found)}" if found else ""


def _modes(source: dict[str, Any]) -> list[str]:
    """In which mode the rows came out, and why; which columns nothing was read from."""
    found = [
        f"{sum(whys.values()):,} {mode} ({', '.join(f'{n:,} {why}' for why, n in whys.items())})"
        for mode, whys in source["modes"].items()
    ]
    lines = [f"    modes: {'; '.join(found)}"] if found else []
    if source["unread"]:
        lines.append(f"    columns not used: {', '.join(source['unread'])}")
    return lines


def describe_mix(manifest: dict[str, Any]) -> str:
    """The mix in a few lines: share asked for and achieved, rows kept and rejected, by source."""
    total = manifest["total"]
    lines = [
        f"mix of {total['rows']:,} rows, {total['tokens']:,} tokens, {total['loss_tokens']:,} with loss "
        f"({manifest['examples']['train']:,} training and {manifest['examples']['validation']:,} validation examples)"
    ]
    for source in manifest["sources"]:
        achieved = ", ".join(f"{source['achieved'][u]:.3f} of {u}" for u in ("rows", "tokens", "loss_tokens"))
        lines.append(
            f"  {source['name']}: share {source['requested']:.3f} of {manifest['unit']} asked for; is {achieved}"
        )
        lines.append(f"    {source['read']:,} rows read, {source['kept']:,} kept" + _detected(source))
        lines += _modes(source)
        for step, entry in source["steps"].items():
            counts = [f"{n:,} {reason}" for reason, n in entry["rejected"].items()]
            rejected = f"rejected {', '.join(counts)}" if counts else ""
            changed = f"changed {entry['changed']:,}" if entry["changed"] else ""
            cost = ""
            if step == "length_limit":
                over = source["over_limit"]
                cost = f": {over['rows']:.1%} of the rows, {over['loss_tokens']:.1%} of the loss-bearing tokens"
            lines.append(f"    {step}: {'; '.join(filter(None, (rejected, changed)))}{cost}")
            lines += [f"      {example}" for example in entry["examples"][:1]]
        for name, counts in (("noted", source["notes"]), ("augmented", source["augmented"])):
            if counts:
                lines.append(f"    {name}: {', '.join(f'{n:,} {word}' for word, n in counts.items())}")
    for name, record in manifest.get("rehearsal", {}).items():
        lines.append(
            f"  {name}: {record['kept']:,} of {record['replies']:,} answers of the base kept, fidelity {record['fidelity']:.3f}"
        )
    return "\n".join([*lines, *(f"  warning: {w}" for w in manifest["warnings"])])
