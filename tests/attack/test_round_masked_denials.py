"""Members that spoil a masked sum by false shares: corrected, else named; no false sum counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest

from federated.rounds.privacy import boxes, messages, shamir
from federated.rounds.privacy.gather import Opening
from federated.rounds.protocol.orders import Send, SumOpened
from federated.rounds.protocol.unmasking import WRONG_SHARES, Unmasking
from federated.rounds.protocol.unread import NO_SHARES
from federated.rounds.protocol.wire import (
    MaskAgree,
    MaskMembers,
    MaskRead,
    MaskReveal,
    MaskShares,
    decode_untrusted,
    packet_of,
    unsigned,
)
from tests.helpers.masked_lies import lying, member_of
from tests.helpers.masked_world import MaskedWorld, masked_settings, sum_of
from tests.helpers.rounds_kit import by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.protocol.orders import Tell
    from federated.rounds.protocol.unread import Unread
    from federated.rounds.protocol.wire import Message


M = TypeVar("M", MaskShares, MaskMembers, MaskReveal)


def wrong_shares(world: MaskedWorld, liars: list[bytes]) -> None:
    """These reveal shares that are of no secret."""
    send = world._send

    def lie(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        if isinstance(message, MaskReveal) and sender in liars:
            reveal = messages.decode_reveal_untrusted(message.body)
            wrong = tuple(
                ((int.from_bytes(share, "big") + 1) % shamir.PRIME).to_bytes(66, "big")
                for share in reveal.shares
            )
            body = messages.encode(msgspec.structs.replace(reveal, shares=wrong))
            order = Send(order.to, unsigned(msgspec.structs.replace(message, body=body)))
        send(sender, order)

    world._send = lie  # type: ignore[method-assign]


def test_wrong_shares_are_found_corrected_and_their_giver_named() -> None:
    named = []
    settings = masked_settings(6)
    for seed in range(6):
        world = MaskedWorld(seed, settings)
        liar = settings[0].me
        wrong_shares(world, [liar])
        world.run(100, done=world.all_decided)
        assert world.all_decided()
        for one in settings:
            assert world.total(one.me) == sum_of([each.me for each in settings])
        told = [tell for node in world.nodes.values() for tell in node.told]
        named += [tell.peer for tell in told if tell.kind == "member.wrong_shares"]
    assert set(named) == {settings[0].me}


def test_no_number_of_wrong_shares_gives_a_false_sum() -> None:
    read = unread = 0
    for seed in range(6):
        settings = masked_settings(6)
        world = MaskedWorld(seed, settings)
        wrong_shares(world, [one.me for one in settings[: 2 + seed % 2]])
        world.run(100, done=world.all_decided)
        decided = [peer for peer, node in world.nodes.items() if node.decided is not None]
        # Whoever can read it tells all others how.
        assert len(decided) in {0, 6}
        read += bool(decided)
        unread += not decided
        for peer in decided:
            assert world.total(peer) == sum_of([each.me for each in settings])
    assert read
    assert unread


# ---- dealers: who shares wrongly denies the sum, and is named


JUNK = bytes(range(148))


def junk(message: MaskShares) -> MaskShares:
    """Boxes that open for nobody."""
    shares = messages.decode_shares_untrusted(message.body)
    return replaced(message, boxes=tuple(box and JUNK for box in shares.boxes))


def changed_box(message: MaskMembers, place: int) -> MaskMembers:
    """What the coordinator hands on, with junk in place of one dealer's box."""
    sealed = list(messages.decode_maskset_untrusted(message.body).boxes)
    sealed[place] = JUNK
    return replaced(message, boxes=tuple(sealed))


def replaced(message: M, **changes: object) -> M:
    """A message of masks with another content."""
    reading = {
        MaskShares: messages.decode_shares_untrusted,
        MaskMembers: messages.decode_maskset_untrusted,
        MaskReveal: messages.decode_reveal_untrusted,
    }
    inner = msgspec.structs.replace(reading[type(message)](message.body), **changes)
    return msgspec.structs.replace(message, body=messages.encode(inner))


def spoilt_for_all(world: MaskedWorld, honest: Sequence[bytes]) -> list[Unread]:
    """The sum is decided and nobody can read it: what each is told."""
    world.run(100, done=world.all_decided)
    found = []
    for peer in honest:
        member = member_of(world, peer)
        assert member.done
        assert world.nodes[peer].decided is None
        assert member.unmasking.unread is not None
        found.append(member.unmasking.unread)
    return found


@pytest.mark.parametrize("leads", [False, True])
def test_who_seals_junk_is_named_where_the_sum_cannot_be_read(leads: bool) -> None:
    settings = masked_settings(6)
    names = [one.me for one in settings]
    leader = settings[0].coordinator(0)
    liar = leader if leads else next(peer for peer in names if peer != leader)
    honest = [peer for peer in names if peer != liar]
    world = MaskedWorld(1, settings)

    def lie(sender: bytes, _: bytes, said: Message) -> Message:
        if isinstance(said, MaskShares) and sender == liar:
            return junk(said)
        if isinstance(said, MaskMembers) and leads:  # what it gives itself never leaves it
            return changed_box(said, names.index(liar))
        return said

    lying(world, lie)
    for found in spoilt_for_all(world, honest):
        assert f"5 of 6 members could not open what {liar[:4].hex()} sealed" in found.reason
        # They cannot know whether it was changed on the way, unless it carried it itself.
        assert (leader[:4].hex() in found.reason) is (leader == liar or not leads)
        assert ("who carried it" in found.reason) is not leads
        assert set(found.members) == {liar}
    for peer in honest:
        told = {one.kind: one for one in world.nodes[peer].told}
        assert told["member.unfit_box"].peer == told["member.spoils_sum"].peer == liar
        said_once = [one for one in world.nodes[peer].told if one.kind == "member.spoils_sum"]
        assert len(said_once) == 1


def test_a_coordinator_that_changes_boxes_is_named_beside_their_dealer() -> None:
    settings = masked_settings(6)
    liar = settings[0].coordinator(0)
    names = [one.me for one in settings]
    victim = next(peer for peer in names if peer != liar)
    world = MaskedWorld(2, settings)

    def lie(_: bytes, to: bytes, said: Message) -> Message:
        if not isinstance(said, MaskMembers) or to == victim:
            return said
        return changed_box(said, names.index(victim))

    lying(world, lie)
    for found in spoilt_for_all(world, [peer for peer in names if peer != liar]):
        assert victim[:4].hex() in found.reason
        assert f"or was changed by {liar[:4].hex()}, who carried it" in found.reason


@pytest.mark.parametrize("last", ["its reveal", "our own"])
def test_who_denies_a_sum_and_tells_one_how_to_read_it_stops_nobody(last: str) -> None:
    """The victim has read the sum when the last reveal comes, by which alone it could not."""
    settings = masked_settings(6)
    names = [one.me for one in settings]
    leader = settings[0].coordinator(0)
    liar, victim = [peer for peer in names if peer != leader][:2]
    world = MaskedWorld(1, settings)
    held: list[tuple[bytes, Send]] = []
    seeds: dict[bytes, bytes] = {}
    send = world._send

    def lie(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        for peer in names:
            attempt = member_of(world, peer)._masks._state.attempt
            if attempt is not None:
                seeds.setdefault(peer, attempt.seed)
        if isinstance(message, MaskShares) and sender == liar:
            order = Send(order.to, packet_of(by(sender, junk(message))))
        late = (
            isinstance(message, MaskReveal) and sender == liar
            if last == "its reveal"
            else isinstance(message, MaskAgree)
        )
        if late and order.to == victim:
            held.append((sender, order))
            return
        send(sender, order)

    world._send = lie  # type: ignore[method-assign]
    world.run(20)
    unmasking = member_of(world, victim).unmasking
    assert len(unmasking._revealed) == 5
    assert not unmasking.read
    secrets = tuple(seeds[peer] for peer in names)
    send(liar, Send(victim, unsigned(MaskRead(*unmasking._head, secrets))))
    world.run(world.now + 10)
    assert unmasking.read
    for sender, order in held:
        send(sender, order)
    world.run(world.now + 10)
    assert len(unmasking._revealed) == 6
    assert world.total(victim) == sum_of(names)
    assert all(one.kind != "member.spoils_sum" for one in world.nodes[victim].told)


def test_a_third_that_names_an_honest_dealer_is_not_believed() -> None:
    """They say that its boxes did not open; one honest member is away, so its share is missing."""
    settings = masked_settings(6)
    names = [one.me for one in settings]
    leader = settings[0].coordinator(0)
    victim, away, *liars = [peer for peer in names if peer != leader][:4]
    world = MaskedWorld(3, settings)

    def lie(sender: bytes, _: bytes, said: Message) -> Message:
        if isinstance(said, MaskRead) and sender in liars:
            return msgspec.structs.replace(said, secrets=())
        if not isinstance(said, MaskReveal) or sender not in liars:
            return said
        shares = list(messages.decode_reveal_untrusted(said.body).shares)
        shares[names.index(victim)] = b""
        return replaced(said, shares=tuple(shares))

    lying(world, lie)

    def strike(_: bytes, told: Tell) -> None:
        if told.kind == "round.applied":
            world.kill(away)

    world.on_tell = strike
    honest = [peer for peer in names if peer not in {away, *liars}]
    for found in spoilt_for_all(world, honest):
        assert f"2 of 5 members could not open what {victim[:4].hex()} sealed" in found.reason
        assert "or say so falsely" in found.reason
        assert "junk" not in found.reason
        assert "without it" not in found.reason


def sealed_wrong(
    world: MaskedWorld, liar: bytes, said: MaskShares, only: bytes = b""
) -> MaskShares:
    """Boxes that open, with shares of nothing in them; all of them or that of one reader."""
    attempt = member_of(world, liar)._masks._state.attempt
    assert attempt is not None
    assert attempt.roster is not None
    right = messages.decode_shares_untrusted(said.body).boxes
    wrong = [b"\0" + bytes([place + 1]) * 65 for place in range(len(right))]
    sealed = tuple(
        right[place]
        if seat.peer == liar or only not in {b"", seat.peer}
        else boxes.seal(
            wrong[place], wrong[place],
            private=attempt.share_private, public=seat.share_key,
            sender=liar, receiver=seat.peer, plan=attempt.roster.plan,
        )
        for place, seat in enumerate(attempt.roster.seats)
    )  # fmt: skip
    return replaced(said, boxes=sealed)


def seal_wrong(world: MaskedWorld, liar: bytes) -> None:
    """All boxes of one member hold shares of nothing."""

    def lie(sender: bytes, _: bytes, said: Message) -> Message:
        if isinstance(said, MaskShares) and sender == liar:
            return sealed_wrong(world, liar, said)
        return said

    lying(world, lie)


def test_who_seals_wrong_shares_is_named_where_the_sum_cannot_be_read() -> None:
    settings = masked_settings(6)
    liar, *honest = [one.me for one in settings]
    world = MaskedWorld(4, settings)
    seal_wrong(world, liar)
    for found in spoilt_for_all(world, honest):
        assert f"the secret of {liar[:4].hex()} do not fit together" in found.reason
        assert "too many of 6 members gave wrong ones" in found.reason
        assert set(found.members) == {liar}


def test_who_spoilt_a_sum_is_looked_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of thirteen shares are needed: reading fails with the ninth, tenth, ... and the last."""
    settings = masked_settings(13)
    liar, *honest = [one.me for one in settings]
    world = MaskedWorld(4, settings)
    seal_wrong(world, liar)
    looked = []
    spoilt, opened = Opening.spoilt, Unmasking.opened

    def look(self: Opening) -> tuple[bytes, ...]:
        looked.append(spoilt(self))
        return looked[-1]

    failures = []

    def watch(self: Unmasking, event: SumOpened) -> bool:
        failures.append(event.failure)
        return opened(self, event)

    monkeypatch.setattr(Opening, "spoilt", look)
    monkeypatch.setattr(Unmasking, "opened", watch)
    assert all(set(found.members) == {liar} for found in spoilt_for_all(world, honest))
    assert len(failures) > 3 * len(honest)
    assert len(looked) == len(settings)
    for peer in honest:
        told = [one.kind for one in world.nodes[peer].told]
        assert told.count("masks.failed") == told.count("member.spoils_sum") == 1


def test_who_was_dealt_a_wrong_share_is_not_called_a_liar() -> None:
    settings = masked_settings(6)
    liar, victim, *_ = names = [one.me for one in settings]
    told = []
    for seed in range(4):
        world = MaskedWorld(seed, settings)

        def lie(sender: bytes, _: bytes, said: Message, world: MaskedWorld = world) -> Message:
            if isinstance(said, MaskRead):  # so that all have to find the secrets by shares
                return msgspec.structs.replace(said, secrets=())
            if isinstance(said, MaskShares) and sender == liar:
                return sealed_wrong(world, liar, said, victim)
            return said

        lying(world, lie)
        world.run(100, done=world.all_decided)
        assert world.total(victim) == sum_of(names)
        told += [one for node in world.nodes.values() for one in node.told]
    blamed = [one for one in told if one.kind == "member.wrong_shares"]
    assert {one.peer for one in blamed} == {victim}
    assert all("or were dealt to it so" in one.detail for one in blamed)


def test_who_gives_back_what_is_no_share_is_called_a_liar_beside_who_was_dealt_a_wrong_one() -> (
    None
):
    settings = masked_settings(6)
    dealer, victim, liar, other, *_ = names = [one.me for one in settings]
    told: dict[bytes, set[str]] = {}
    for seed in range(8):
        world = MaskedWorld(seed, settings)

        def lie(sender: bytes, _: bytes, said: Message, world: MaskedWorld = world) -> Message:
            if isinstance(said, MaskRead):  # so that all have to find the secrets by shares
                return msgspec.structs.replace(said, secrets=())
            if isinstance(said, MaskShares) and sender == dealer:
                return sealed_wrong(world, dealer, said, victim)
            if isinstance(said, MaskReveal) and sender == liar:
                shares = list(messages.decode_reveal_untrusted(said.body).shares)
                shares[names.index(other)] = b"\xff" * 66
                return replaced(said, shares=tuple(shares))
            return said

        lying(world, lie)
        world.run(100, done=world.all_decided)
        assert world.total(victim) == sum_of(names)
        for peer, node in world.nodes.items():
            for one in node.told:
                if one.kind == "member.wrong_shares" and peer != liar:
                    assert one.peer is not None
                    told.setdefault(one.peer, set()).add(one.detail)
    assert told == {victim: {WRONG_SHARES}, liar: {NO_SHARES}}


def test_too_few_that_give_shares_are_counted_and_nobody_is_named() -> None:
    settings = masked_settings(6)
    names = [one.me for one in settings]
    leader = settings[0].coordinator(0)
    world = MaskedWorld(5, settings)

    def strike(_: bytes, told: Tell) -> None:
        if told.kind == "round.applied":
            for peer in [peer for peer in names if peer != leader][:3]:
                world.kill(peer)

    world.on_tell = strike
    for found in spoilt_for_all(world, [leader]):
        assert "of the 4 members that it takes" in found.reason
        assert not found.members
