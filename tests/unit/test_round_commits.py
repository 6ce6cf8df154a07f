"""Commits that a coordinator passes on: of any number and size, in messages that arrive."""

from __future__ import annotations

import pytest

from federated.rounds.protocol.holdings import _of_messages_size
from federated.rounds.protocol.wire import (
    CONTROL_BYTES_MAX,
    Commit,
    Commits,
    decode_untrusted,
    encode,
)
from tests.helpers.rounds_kit import by, peers


@pytest.mark.parametrize("name_characters", [1, 200])
@pytest.mark.parametrize("count", [1, 30, 64])
def test_every_commit_is_in_one_message_and_each_message_may_be_sent(
    count: int, name_characters: int
) -> None:
    metrics = {f"{number}".zfill(name_characters): 1.0 for number in range(9)}
    head = (bytes(32), 1, 0, bytes(32))
    commits = [
        by(peer, Commit(*head, (bytes(32),) * 64, 1.0, 1.0, metrics)) for peer in peers(count)
    ]
    messages = [Commits(*head, some) for some in _of_messages_size(commits)]
    assert [one for message in messages for one in message.commits] == commits
    for message in messages:
        assert len(encode(message)) <= CONTROL_BYTES_MAX
        assert decode_untrusted(encode(message)) == message
    if count == 64:
        assert len(messages) == (2 if name_characters == 200 else 1)
