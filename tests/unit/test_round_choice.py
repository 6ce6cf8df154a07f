"""Plain or masked: what a policy comes to with the members there are."""

from __future__ import annotations

import pytest

from federated.errors import PlanError
from federated.rounds.privacy.choice import Choice, check_epsilon, choose


def owners(*devices: int) -> list[bytes]:
    """So many devices of each owner."""
    return [bytes([owner]) * 32 for owner, count in enumerate(devices) for _ in range(count)]


PLAIN, MASKED = Choice("plain", "auto"), Choice("masked", "norm_bounded")


@pytest.mark.parametrize(
    ("wish", "devices", "allow_plain", "expected"),
    [
        ("auto", (1,), False, PLAIN),
        ("auto", (9,), False, PLAIN),
        ("auto", (1, 1, 1, 1), False, MASKED),
        ("auto", (1, 1, 1, 1), True, MASKED),
        ("auto", (2, 2, 2, 1), False, MASKED),  # two of seven is below a third
        ("auto", (2, 1, 1, 1), False, "a third"),
        ("auto", (2, 2, 1, 1), False, "a third"),  # two of six is a third
        ("auto", (2, 2, 1, 1), True, PLAIN),
        ("auto", (3, 3, 3), False, "3 owners"),
        ("auto", (1, 1), False, "2 owners"),
        ("auto", (1, 1), True, PLAIN),
        ("plain", (5,), False, PLAIN),
        ("plain", (1, 1, 1, 1), False, "allow_plain"),
        ("plain", (1, 1, 1, 1), True, PLAIN),
        ("masked", (1, 1, 1, 1), False, MASKED),
        ("masked", (1, 1, 1), True, "3 owners"),  # never less than what was asked for
        ("masked", (4,), True, "1 owners"),
        ("masked", (3, 2, 2, 2), True, "a third"),
    ],
)
def test_what_a_policy_comes_to(wish, devices, allow_plain, expected):
    def made() -> Choice:
        return choose(wish, owners(*devices), rule="auto", clip=1.0, allow_plain=allow_plain)

    if isinstance(expected, Choice):
        assert made() == expected
        return
    with pytest.raises(PlanError, match=expected) as caught:
        made()
    assert caught.value.reason == "privacy"


@pytest.mark.parametrize("rule", ["mean", "norm_bounded"])
def test_rules_of_sums_are_possible_when_masked(rule):
    assert choose("auto", owners(1, 1, 1, 1), rule=rule, clip=1.0) == Choice("masked", rule)


@pytest.mark.parametrize(
    "rule", ["median", "trimmed", "multi_krum", "rfa", "centred_clipping", "fltrust",
             "bucketing_rfa"],
)  # fmt: skip
def test_rules_that_compare_updates_need_plain_rounds(rule):
    with pytest.raises(PlanError, match="only their sum"):
        choose("auto", owners(1, 1, 1, 1), rule=rule, clip=1.0)
    assert choose("auto", owners(4), rule=rule, clip=None) == Choice("plain", rule)


def test_a_masked_round_needs_its_clipping_norm_from_the_start():
    with pytest.raises(PlanError, match="set clip"):
        choose("auto", owners(1, 1, 1, 1), rule="auto", clip=None)
    sums = choose("auto", owners(1, 1, 1, 1), rule="sum", clip=None)
    assert sums == Choice("masked", "sum")


@pytest.mark.parametrize("mode", ["auto", "exact", "ddp"])
def test_a_budget_that_nobody_accounts_for_is_refused(mode):
    with pytest.raises(PlanError, match="no ledger yet") as caught:
        check_epsilon(1.0, mode)
    assert caught.value.reason == "privacy"
    check_epsilon(None, mode)
    check_epsilon(1.0, "ldp")
