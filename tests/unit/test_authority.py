"""The rank rule, a rule a test; docs/specs/authority.md."""

from __future__ import annotations

import itertools
import time

import pytest

from p2p.errors import AuthError, UsageError
from p2p.identity import Identity, verify
from p2p.replication import ops
from p2p.replication.authority import Authority
from p2p.replication.ops import Role
from tests.helpers.membership import (
    RECOVERY,
    Ledger,
    fork,
    grant,
    invite,
    join,
    key,
    limit,
    trusting,
)

ADMIN, WRITE, READ, RELAY = Role.ADMIN, Role.WRITE, Role.READ, Role.RELAY


def let_in(ledger: Ledger, inviter: str, joiner: str, role: Role, admitter: str | None = None):
    """Invite, join and admit; the three op numbers."""
    v = ledger.write(inviter, invite(role))
    j = ledger.write(joiner, join(ledger.id(v)))
    a = ledger.write(admitter or inviter, ops.Admit(ledger.id(j)))
    return v, j, a


# Founding and supports.


def test_founder_alone_is_admin_of_rank_one():
    standing = Ledger().standing()
    assert standing.members() == {key("F"): ADMIN}
    assert standing.rank(key("F")) == 1
    assert standing.invited_by(key("F")) is None


def test_grant_by_an_admin_stands_and_by_a_writer_does_not():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    by_writer = ledger.write("W", grant("X", READ))
    by_stranger = ledger.write("S", grant("S", ADMIN))
    assert not ledger.stands(by_writer)
    assert not ledger.stands(by_stranger)
    assert ledger.standing().members() == {key("F"): ADMIN, key("W"): WRITE}


def test_an_invite_alone_and_a_join_alone_make_no_member():
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE))
    ledger.write("J", join(ledger.id(v)))
    assert ledger.role("J") is None
    pending = ledger.standing().pending_joins()
    assert [(p.member, p.invite_id) for p in pending] == [(key("J"), ledger.id(v))]


def test_invite_join_and_admit_make_a_member_and_say_who_invited():
    ledger = Ledger()
    v, j, a = let_in(ledger, "F", "J", WRITE)
    standing = ledger.standing()
    assert standing.role(key("J")) == WRITE
    assert standing.invited_by(key("J")) == key("F")
    (support,) = standing.supports(key("J"))
    assert support.op_ids == (ledger.id(v), ledger.id(j), ledger.id(a))
    assert standing.pending_joins() == []


def test_a_writer_admits_to_an_automatic_invite_only():
    for manual, role, expected in (
        (False, WRITE, WRITE),
        (True, WRITE, None),
        (False, ADMIN, None),
    ):
        ledger = Ledger()
        ledger.write("F", grant("W", WRITE))
        v = ledger.write("F", invite(role, manual=manual))
        j = ledger.write("J", join(ledger.id(v)))
        ledger.write("W", ops.Admit(ledger.id(j)))
        assert ledger.role("J") is expected


def test_a_reader_admits_nobody():
    ledger = Ledger()
    ledger.write("F", grant("R", READ))
    _, _, a = let_in(ledger, "F", "J", WRITE, admitter="R")
    assert not ledger.stands(a)
    assert ledger.role("J") is None


def test_a_join_that_did_not_see_its_invite_is_void():
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE))
    j = ledger.write("J", join(ledger.id(v)), auth=[ledger.genesis])
    ledger.write("F", ops.Admit(ledger.id(j)))
    assert not ledger.stands(j)
    assert ledger.role("J") is None


def test_an_admit_that_did_not_see_its_join_is_void():
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE))
    j = ledger.write("J", join(ledger.id(v)))
    a = ledger.write("F", ops.Admit(ledger.id(j)), auth=[v])
    assert not ledger.stands(a)
    assert ledger.role("J") is None


def test_an_invite_lets_in_as_many_as_it_says():
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE, uses=2))
    for name in "ABC":
        j = ledger.write(name, join(ledger.id(v)), auth=[v])
        ledger.write("F", ops.Admit(ledger.id(j)))
    standing = ledger.standing()
    assert sum(standing.role(key(n)) == WRITE for n in "ABC") == 2
    view = standing.invites()[ledger.id(v)]
    assert (view.used, view.open) == (2, False)
    assert standing.pending_joins() == []


def test_an_admins_admit_counts_before_a_writers():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    v = ledger.write("F", invite(WRITE))
    low, high = bytes([0] * 32), bytes([255] * 32)
    by_writer = ledger.write("X", join(ledger.id(v)), ident=low)  # ground to come first
    by_admin = ledger.write("H", join(ledger.id(v)), ident=high)
    ledger.write("W", ops.Admit(ledger.id(by_writer)))
    ledger.write("F", ops.Admit(ledger.id(by_admin)))
    assert ledger.role("H") == WRITE
    assert ledger.role("X") is None


@pytest.mark.attack
def test_a_backdated_admit_after_the_close_counts_for_nothing():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    v = ledger.write("F", invite(WRITE))
    j = ledger.write("H", join(ledger.id(v)), ident=bytes([9] * 32))
    a = ledger.write("F", ops.Admit(ledger.id(j)))
    ledger.write("F", ops.InviteClose(ledger.id(v)))
    ledger.write("F", limit("W"))
    late = ledger.write("X", join(ledger.id(v)), auth=[v], ident=bytes([1] * 32))
    ledger.write("W", ops.Admit(ledger.id(late)), auth=[v, late])
    assert ledger.role("H") == WRITE
    assert ledger.role("X") is None
    assert ledger.stands(a)


def test_a_close_leaves_those_in_who_were_admitted_before_it():
    ledger = Ledger()
    v, _, _ = let_in(ledger, "F", "J", WRITE)
    ledger.write("F", ops.InviteClose(ledger.id(v)))
    assert ledger.role("J") == WRITE
    assert ledger.standing().invites()[ledger.id(v)].closed


# Removing.


def test_a_limit_removes_and_a_grant_in_its_knowledge_lets_in_again():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    ledger.write("F", limit("W"))
    assert ledger.role("W") is None
    ledger.write("F", grant("W", READ))
    assert ledger.role("W") == READ


def test_a_limit_with_a_lower_grant_demotes():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    ledger.write("F", limit("A", keep=[(1, 0, 9)]))
    ledger.write("F", grant("A", READ))
    assert ledger.role("A") == READ


def test_equals_cannot_remove_each_other_and_a_senior_can():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    ledger.write("F", grant("B", ADMIN))
    ledger.write("B", grant("C", ADMIN))
    equal = ledger.write("A", limit("B"))
    upward = ledger.write("B", limit("F"))
    deeper = ledger.write("B", limit("C"))
    assert not ledger.stands(equal)
    assert not ledger.stands(upward)
    assert ledger.stands(deeper)
    assert ledger.standing().members() == {key(n): ADMIN for n in "FAB"}


def test_any_admin_removes_who_is_no_admin_whoever_invited():
    ledger = Ledger()
    ledger.write("F", grant("B", ADMIN))
    ledger.write("F", grant("W", WRITE))
    x = ledger.write("B", limit("W"))
    assert ledger.stands(x)
    assert ledger.role("W") is None


def test_the_recovery_key_removes_the_founder_and_founds_anew():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    ledger.write(RECOVERY, limit("F", keep=[(1, 0, 2)]))
    ledger.write(RECOVERY, grant("N", ADMIN))
    assert ledger.standing().members() == {key("A"): ADMIN, key("N"): ADMIN}
    assert ledger.standing().rank(key("N")) == 1


def test_nobody_removes_by_the_recovery_keys_right():
    ledger = Ledger()
    ledger.write("F", limit(RECOVERY))
    ledger.write(RECOVERY, limit("F"))
    assert ledger.role("F") is None


def test_what_a_removed_admin_did_before_stays_as_far_as_kept():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    kept = ledger.write("A", grant("P", WRITE))
    dropped = ledger.write("A", grant("Q", WRITE))
    ledger.write("F", limit("A", keep=[(1, 0, 1)]))
    assert ledger.stands(kept)
    assert not ledger.stands(dropped)
    assert ledger.standing().members() == {key("F"): ADMIN, key("P"): WRITE}


@pytest.mark.attack
def test_a_removed_admin_backdates_in_vain():
    ledger = Ledger()
    a = ledger.write("F", grant("A", ADMIN))
    ledger.write("F", limit("A"))
    for incarnation in (1, 2, 99):
        x = ledger.write("A", grant("S", ADMIN), auth=[a], incarnation=incarnation)
        assert not ledger.stands(x)
    y = ledger.write("A", limit("F"), auth=[a], incarnation=7)
    assert not ledger.stands(y)
    assert ledger.standing().members() == {key("F"): ADMIN}


@pytest.mark.attack
def test_a_deep_admin_cannot_raise_a_removed_senior_against_its_branch():
    # F removes M; D, deep below, lets M in again as admin; M then may not remove C, D's senior.
    ledger = Ledger()
    ledger.write("F", grant("M", ADMIN))
    ledger.write("F", grant("B", ADMIN))
    ledger.write("B", grant("C", ADMIN))
    ledger.write("C", grant("D", ADMIN))
    ledger.write("F", limit("M"))
    ledger.write("D", grant("M", ADMIN))
    x = ledger.write("M", limit("C"), incarnation=5)
    assert not ledger.stands(x)
    assert ledger.role("C") == ADMIN


@pytest.mark.attack
def test_an_admin_let_in_by_a_deep_writer_has_the_deeper_rank():
    # The liar's paradox: J joins by K's high invite through L's writer and removes L. Only an
    # admin can admit an admin, so J is nobody.
    ledger = Ledger()
    ledger.write("F", grant("K", ADMIN))
    v = ledger.write("F", invite(ADMIN))
    ledger.write("K", grant("L", ADMIN))
    ledger.write("L", grant("W", WRITE))
    j = ledger.write("J", join(ledger.id(v)))
    a = ledger.write("W", ops.Admit(ledger.id(j)))
    x = ledger.write("J", limit("L"))
    assert not ledger.stands(a)
    assert not ledger.stands(x)
    assert ledger.role("L") == ADMIN


def test_leaving_stands_always_and_the_stolen_key_of_who_left_is_worth_nothing():
    ledger = Ledger()
    m = ledger.write("F", grant("M", ADMIN))
    ledger.write("M", limit("M", keep=[(1, 0, 1)], next_incarnation=5))
    x = ledger.write("M", grant("X", ADMIN), auth=[m], incarnation=7)
    assert not ledger.stands(x)
    assert ledger.standing().members() == {key("F"): ADMIN}


@pytest.mark.attack
def test_the_ticket_of_a_removed_member_is_spent():
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE, uses=2))
    ledger.write("F", grant("W", WRITE))
    j = ledger.write("X", join(ledger.id(v)))
    ledger.write("F", ops.Admit(ledger.id(j)))
    ledger.write("F", limit("X", keep=[(1, 0, 1)]))
    again = ledger.write("X", join(ledger.id(v)), incarnation=2)
    ledger.write("W", ops.Admit(ledger.id(again)))
    assert ledger.role("X") is None


def test_a_kept_invitee_survives_its_inviters_own_limit_and_fork():
    # F removes A and keeps P; A then limits itself and forks its log to void P's grant.
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    kept = ledger.write("A", grant("P", WRITE))
    ledger.write("F", limit("A", keep=[(1, 0, 1)]))
    ledger.write("A", limit("A", keep=[]), auth=[kept])
    authority = ledger.authority()
    fork(authority, "A", 1, 1)
    assert authority.standing().role(key("P")) == WRITE


def test_a_fork_voids_the_log_from_its_seq_up_and_never_the_genesis():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    first = ledger.write("A", grant("P", WRITE))
    second = ledger.write("A", grant("Q", WRITE))
    authority = ledger.authority()
    fork(authority, "A", 1, 2)
    standing = authority.standing()
    assert ledger.id(first) not in standing.void_ops()
    assert ledger.id(second) in standing.void_ops()
    fork(authority, "F", 1, 1)
    assert authority.standing().role(key("F")) == ADMIN
    assert authority.standing().members() == {key("F"): ADMIN}


def test_admins_deeper_than_sixteen_are_void():
    ledger = Ledger()
    chain = ["F", *(f"A{i}" for i in range(1, 20))]
    numbers = [ledger.write(a, grant(b, ADMIN)) for a, b in itertools.pairwise(chain)]
    stood = [ledger.stands(n) for n in numbers]
    assert stood == [True] * 16 + [False] * 3


# Records that are no A ops (rule 5).


def test_data_counts_for_writers_and_not_for_readers_or_strangers():
    ledger = Ledger()
    w = ledger.write("F", grant("W", WRITE))
    r = ledger.write("F", grant("R", READ))
    standing = ledger.standing()
    assert standing.live(ledger.data("W", [r]), bytes(32))
    assert not standing.live(ledger.data("R", [r]), bytes(32))
    assert not standing.live(ledger.data("S", [r]), bytes(32))
    assert not standing.live(ledger.data("W", [ledger.genesis]), bytes(32))
    assert standing.live(ledger.data("R", [r], kind=15), bytes(32))
    assert not standing.live(ledger.data("W", [w], kind=ops.Kind.EPOCH), bytes(32))
    assert standing.live(ledger.data("F", [w], kind=ops.Kind.EPOCH), bytes(32))
    assert standing.live(ledger.data("W", [w], kind=ops.Kind.KEY_SHARE), bytes(32))


def test_a_removed_writers_data_counts_up_to_what_is_kept():
    ledger = Ledger()
    w = ledger.write("F", grant("W", WRITE))
    ledger.write("F", limit("W", keep=[(1, 1, 5)]))
    standing = ledger.standing()
    assert standing.live(ledger.data("W", [w], seq=5), bytes(32))
    assert not standing.live(ledger.data("W", [w], seq=6), bytes(32))
    assert not standing.live(ledger.data("W", [w], incarnation=2), bytes(32))
    assert not standing.live(ledger.data("W", [w], seq=1, kind=15), bytes(32))  # another lane


def test_who_is_let_in_again_writes_under_a_new_incarnation():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    ledger.write("F", limit("W", next_incarnation=4))
    back = ledger.write("F", grant("W", WRITE))
    standing = ledger.standing()
    assert not standing.live(ledger.data("W", [back], incarnation=1), bytes(32))
    assert not standing.live(ledger.data("W", [back], incarnation=3), bytes(32))
    assert standing.live(ledger.data("W", [back], incarnation=4), bytes(32))


def test_data_above_a_fork_does_not_count_and_the_proof_itself_does():
    ledger = Ledger()
    w = ledger.write("F", grant("W", WRITE))
    authority = ledger.authority()
    fork(authority, "W", 1, 3, lane=1)
    standing = authority.standing()
    assert standing.live(ledger.data("W", [w], seq=2), bytes(32))
    assert not standing.live(ledger.data("W", [w], seq=3), bytes(32))
    assert standing.live(ledger.data("S", [w], kind=ops.Kind.FORK_PROOF), bytes(32))


def test_data_citing_what_is_not_here_does_not_count():
    ledger = Ledger()
    standing = ledger.standing()
    w = ledger.write("F", grant("W", WRITE))
    assert not standing.live(ledger.data("W", [w]), bytes(32))


def test_owner_keys_count_in_a_home_only():
    for home in (True, False):
        ledger = Ledger(home=home)
        head = ledger.data("F", [ledger.genesis], kind=ops.Kind.OWNER_KEY)
        assert ledger.standing().live(head, bytes(32)) is home


# Unknown ops and policies.


def test_an_unknown_op_of_an_admin_asks_for_an_upgrade_and_a_readers_does_not():
    ledger = Ledger()
    ledger.write("F", grant("R", READ))
    ledger.write("R", None, kind=11)
    assert not ledger.standing().upgrade_needed
    ledger.write("F", None, kind=11)
    assert ledger.standing().upgrade_needed


def test_the_newest_standing_policy_holds():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    assert ledger.standing().policy() == ops.Limits()
    ledger.write("F", ops.Policy(ops.Limits(1, 2, 3)))
    ledger.write("F", ops.Policy(ops.Limits(4, 5, 6)))
    ledger.write("W", ops.Policy(ops.Limits(7, 8, 9)))
    assert ledger.standing().policy() == ops.Limits(4, 5, 6)


# Authority: taking in.


def test_the_genesis_comes_first_and_names_the_group():
    ledger = Ledger()
    i = ledger.write("F", grant("W", WRITE))
    authority = Authority(ledger.group, trusting)
    with pytest.raises(UsageError, match="genesis"):
        authority.add(*ledger.entries[i])
    with pytest.raises(UsageError, match="genesis"):
        authority.standing()
    stranger = Authority(bytes(32), trusting)
    with pytest.raises(AuthError, match="another group"):
        stranger.add(*ledger.entries[0])


def test_a_missing_citation_is_named_and_refused():
    ledger = Ledger()
    a = ledger.write("F", grant("A", WRITE))
    b = ledger.write("F", grant("B", WRITE), auth=[a])
    authority = Authority(ledger.group, trusting)
    authority.add(*ledger.entries[0])
    assert authority.missing(ledger.entries[b][1]) == (ledger.id(a),)
    with pytest.raises(UsageError, match="cited"):
        authority.add(*ledger.entries[b])


@pytest.mark.attack
def test_an_op_dated_before_what_it_cites_is_refused():
    ledger = Ledger()
    i = ledger.write("F", grant("W", WRITE))
    ident, head, payload = ledger.entries[i]
    old = ops.Grant(key("W"), WRITE)
    early = type(head)(**{f: getattr(head, f) for f in head.__struct_fields__} | {"hlc": 1})
    authority = Authority(ledger.group, trusting)
    authority.add(*ledger.entries[0])
    with pytest.raises(AuthError, match="dated"):
        authority.add(ident, early, old)
    assert authority.add(ident, head, payload)


def test_adding_twice_changes_nothing():
    ledger = Ledger()
    authority = ledger.authority()
    before = authority.standing()
    assert not authority.add(*ledger.entries[0])
    assert authority.standing() is before


def test_named_tells_members_from_strangers_without_a_fold():
    ledger = Ledger()
    w = ledger.write("F", grant("W", WRITE))
    v = ledger.write("F", invite(WRITE))
    j = ledger.write("J", join(ledger.id(v)))
    authority = ledger.authority()
    cite = [(ledger.id(i),) for i in (ledger.genesis, w, j)]
    assert [authority.named(key("F"), c) for c in cite] == [True, True, True]
    assert [authority.named(key("W"), c) for c in cite] == [False, True, True]
    assert [authority.named(key("J"), c) for c in cite] == [False, False, True]
    assert not any(authority.named(key("S"), c) for c in cite)
    assert authority.named(key(RECOVERY), cite[0])


def test_heads_are_what_nothing_else_reaches():
    ledger = Ledger()
    assert ledger.authority().heads() == (ledger.group,)
    a = ledger.write("F", grant("A", ADMIN), auth=[ledger.genesis])
    b = ledger.write("X", grant("B", WRITE), auth=[ledger.genesis])  # void, cited all the same
    assert ledger.authority().heads() == tuple(sorted([ledger.id(a), ledger.id(b)]))


def test_of_many_heads_those_with_ones_own_support_are_cited():
    ledger = Ledger()
    mine = ledger.write("F", grant("W", WRITE), auth=[ledger.genesis])
    for i in range(20):
        ledger.write(f"S{i}", grant("Z", WRITE), auth=[ledger.genesis])
    authority = ledger.authority()
    heads = authority.heads(key("W"))
    assert len(heads) == 8
    assert list(heads) == sorted(heads)
    assert ledger.id(mine) in heads
    assert authority.standing().live(
        ledger.data("W", [i for i in range(len(ledger.entries)) if ledger.id(i) in heads]),
        bytes(32),
    )


@pytest.mark.attack
def test_a_chain_that_cites_its_own_future_cannot_loop():
    # Above a gap nobody can check prev: X writes seq 5, then a seq 2 that cites seq 5.
    ledger = Ledger()
    ledger.write("F", grant("X", ADMIN))
    five = ledger.write("X", grant("P", WRITE), seq=5)
    two = ledger.write("X", grant("Q", WRITE), auth=[five], seq=2)
    forwards = ledger.standing().members()
    backwards = ledger.standing(list(reversed(range(len(ledger.entries))))).members()
    assert forwards == backwards
    assert ledger.stands(two)


def test_an_op_that_closes_a_gap_joins_what_those_above_it_had_seen():
    ledger = Ledger()
    ledger.write("F", grant("A", ADMIN))
    first = ledger.write("A", limit("P"))
    second = ledger.write("A", grant("P", WRITE), auth=[ledger.genesis + 1])
    order = [0, 1, second, first]
    assert ledger.standing(order).role(key("P")) == WRITE  # the grant knew of the limit
    assert ledger.standing().role(key("P")) == WRITE


def test_every_history_of_three_ops_ends_the_same_in_every_order():
    """Exhaustive: what two devices can do to each other and a third, each seeing all or little."""
    payloads = [
        grant("A", ADMIN),
        grant("B", ADMIN),
        limit("A", keep=[(1, 0, 1)]),
        limit("F"),
    ]
    moves = list(itertools.product(("F", "A"), payloads, (True, False)))
    histories = 0
    for history in itertools.product(moves, repeat=3):
        ledger = Ledger()
        for author, payload, sees_all in history:
            ledger.write(author, payload, None if sees_all else [ledger.genesis])
        want = ledger.standing()
        for order in ((3, 2, 1), (2, 3, 1), (1, 3, 2)):
            have = ledger.standing([0, *order])
            assert have.members() == want.members()
            assert have.void_ops() == want.void_ops()
        left = any(author == "F" and payload == limit("F") for author, payload, _ in history)
        assert want.role(key("F")) == (None if left else ADMIN)  # nobody outranks the founder
        histories += 1
    assert histories == 16**3


@pytest.mark.timing
def test_folding_costs_a_part_of_verifying():
    """500 ops fold in under half the time their signatures take; a twelfth when quiet."""
    ledger = Ledger()
    for i in range(125):
        let_in(ledger, "F", f"M{i}", WRITE)
        ledger.write("F", grant(f"M{i % 7}", READ), [len(ledger.entries) - 1])
    identity = Identity.from_seed(bytes(32))
    signature = identity.sign(b"d", bytes(200))
    rounds = []
    for _ in range(3):
        start = time.process_time()
        authority = ledger.authority()
        authority.standing().members()
        folded = time.process_time()
        for _ in range(len(ledger.entries)):
            verify(identity.id, b"d", bytes(200), signature)
        rounds.append((folded - start) / (time.process_time() - folded))
    assert len(ledger.entries) == 501
    assert min(rounds) < 0.5


def test_a_join_that_arrives_before_its_invite_is_checked_when_that_comes():
    # Only a hostile joiner writes one: it cites ops that do not reach its invite.
    for good in (True, False):
        ledger = Ledger()
        v = ledger.write("F", invite(WRITE))
        j = ledger.write("J", join(ledger.id(v)), auth=[ledger.genesis])
        authority = Authority(ledger.group, lambda *_, good=good: good)
        for i in (ledger.genesis, j, v):
            assert authority.add(*ledger.entries[i])
        assert authority.standing().pending_joins() == []
        assert authority.standing().void_ops() == {ledger.id(j)}


def test_a_gap_that_closes_can_show_a_join_its_invite():
    # J's seq 1 cites the invite; its join at seq 2 arrives first and cites the genesis alone.
    ledger = Ledger()
    v = ledger.write("F", invite(WRITE))
    first = ledger.write("J", grant("J", READ), auth=[v])
    j = ledger.write("J", join(ledger.id(v)), auth=[ledger.genesis])
    authority = Authority(ledger.group, trusting)
    for i in (ledger.genesis, j, v):
        authority.add(*ledger.entries[i])
    assert authority.standing().pending_joins() == []
    authority.add(*ledger.entries[first])
    assert [p.join_id for p in authority.standing().pending_joins()] == [ledger.id(j)]


def test_a_fork_found_again_higher_up_changes_nothing():
    ledger = Ledger()
    ledger.write("F", grant("W", WRITE))
    authority = ledger.authority()
    fork(authority, "W", 1, 3)
    fork(authority, "W", 1, 5)
    assert authority.fork_seq(key("W"), 1, 0) == 3
    fork(authority, "W", 1, 2)
    assert authority.fork_seq(key("W"), 1, 0) == 2


def test_a_control_record_without_its_payload_is_our_mistake():
    ledger = Ledger()
    authority = ledger.authority()
    head = ledger.data("F", [ledger.genesis], kind=ops.Kind.EPOCH)
    with pytest.raises(UsageError, match="payload"):
        authority.add(bytes(32), head, None)
    assert not authority.add(bytes(32), ledger.data("F", [ledger.genesis], kind=30), None)
    epoch = ops.Epoch(bytes(32), ())
    assert authority.add(bytes(32), head, epoch)
    assert not authority.add(bytes(32), head, epoch)
    assert len(authority) == 1
    assert ledger.group in authority
