"""What a run would do, without doing it."""

from __future__ import annotations

from typing import Any

from pipeline.data.describe import counted_mix
from pipeline.model.config import model_config
from pipeline.model.room import require_context
from pipeline.settings import Profile
from pipeline.training.estimate import estimate, global_batch, planned_steps, profile_sizes
from pipeline.training.estimate_replies import estimate_replies


def plan_run(profile: Profile, tflops: float | None = None) -> dict[str, Any]:
    """What a run would do, without doing it: rows, tokens, steps, and an estimate of time and memory.

    The time scales measured rates (``estimate`` in the profile, with the machine they were measured on); where the profile has
    none, that of training comes from a count of operations and ``tflops``, and is null without it.

    Raises:
        UserError: the replies of the evaluation cannot fit into the model; what building the mix raises.
    """
    config = model_config(profile.model)
    if config is not None:
        require_context(profile, config)
    answers = estimate_replies(profile, profile_sizes(profile))
    mix, whole = counted_mix(profile)
    manifest, asked = mix.manifest, 0 if whole else answers["rehearsal"]["replies"] or 0
    steps = planned_steps(profile, manifest["examples"]["train"])
    batch = global_batch(profile)
    tokens = int(manifest["total"]["tokens"] / manifest["examples"]["train"] * steps * batch)
    replies = None
    if profile.evaluation.limit:
        replies = 4 * len(profile.evaluation.benchmarks) * profile.evaluation.limit + asked
    estimated = estimate(profile, tokens, tflops)
    rates = profile.estimate
    seconds = None
    if rates and replies is not None:
        seconds = round(rates.start_seconds + tokens / rates.tokens_per_second + replies / rates.replies_per_second)
    return {
        "model": profile.model.name,
        "mix": {k: manifest[k] for k in ("unit", "total", "examples", "fingerprint", "sources", "warnings")},
        "steps": steps,
        "training_tokens": tokens,
        "replies_to_generate": replies,
        "estimated_seconds": seconds,
        "estimate_measured_on": rates.machine if rates else None,
        "estimated_memory_bytes": estimated["memory_bytes"],
        "estimate": estimated,
        "evaluation": answers,
    }
