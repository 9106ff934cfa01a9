from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.watch import SETTLING, Scaled, Watch, without_gradient


def test_the_first_bad_value_is_found_with_its_batch() -> None:
    watch = Watch(at_once=False)
    ids = torch.arange(200).reshape(2, 100)
    watch.add("The loss", 1, torch.tensor(1.0), 0.1, ids)
    watch.add("The loss", 2, torch.tensor([0.5, float("inf")]), 0.2, ids)
    watch.add("The loss", 3, torch.tensor(float("nan")), 0.3, None)
    bad = watch.look()
    assert bad is not None and (bad.step, bad.rate, bad.rows, bad.tokens) == (2, 0.2, 2, 100)
    assert bad.first is not None and bad.first.tolist() == list(range(60))
    assert watch.look() is None  # what was looked at is let go


def test_what_is_kept_of_a_batch_holds_no_more_of_it() -> None:
    watch = Watch(at_once=False)
    watch.add("The loss", 1, torch.tensor(1.0, requires_grad=True) * 2, 0.1, torch.zeros(8, 4096, dtype=torch.long))
    (seen,) = watch.seen
    assert seen.first is not None and seen.first.untyped_storage().nbytes() == 60 * 8
    assert not seen.value.requires_grad


def test_a_scaler_may_skip_steps_but_not_for_ever() -> None:
    scaled = Scaled()
    assert all(scaled.fine(float("inf")) for _ in range(SETTLING)) and not scaled.fine(float("nan"))
    assert scaled.fine(1.0) and scaled.fine(float("inf"))  # counted anew


@pytest.mark.parametrize(("name", "found"), [("idle", ["idle.weight"]), ("experts", [])])
def test_experts_may_wait_for_a_token(name: str, found: list[str]) -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1, bias=False), "frozen": nn.Linear(2, 1).requires_grad_(False)})
    model[name] = (
        nn.ModuleDict({"experts": nn.Linear(2, 1, bias=False)}) if name == "experts" else nn.Linear(2, 1, bias=False)
    )
    model["used"](torch.ones(1, 2)).sum().backward()
    assert without_gradient(model) == (found, 2)
