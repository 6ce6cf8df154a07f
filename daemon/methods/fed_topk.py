"""`fed.top_k`: the most frequent items of everybody's data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from daemon.errors import RpcError
from daemon.methods.fed import ERROR_OF, RoundInfo, RoundMember, Seconds, round_info
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, shown_name
from daemon.noise_key import noise_key
from daemon.rpc.registry import Call, method
from federated.errors import RoundError, UsageError
from federated.rounds.statistics.answers import TopK, Way
from federated.rounds.statistics.limits import ITEMS_MAX, K_MAX

if TYPE_CHECKING:
    from daemon.fed_items import ItemsQuestion
    from daemon.services import Services
    from federated.rounds.service import Total


class TopKParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A question about frequent items; who asks the same takes part with its own.

    Attributes:
        items: this machine's records, one each, at most 200,000; they do not leave it.
        k: how many items are wanted.
        mode: `auto` is `ldp`: each record is reported once, with noise of its own that hides it
            from everybody; `plain`: counts without noise; `central`, noise on the sum, is refused.
        epsilon: what a record's report may cost, 0.01 to 8; none: 4, or no noise in mode plain.
            Equal records give equal reports, which cost nothing more. With one record changed, or
            another epsilon or vocabulary, all are reported anew, and each costs that epsilon as
            well. That records of this machine changed is seen by all, whatever epsilon is.
        vocabulary: all items that may come, the same list on every machine; none: words of the
            letters a to z, told apart by their first six.
        search: how the reports are searched: `graded`, our way; `tap`, TAP (arXiv 2412.14832),
            which finds fewer: to compare with. It costs nothing more. Modes with noise alone.
        name: what is asked about; calls meet when name and the arguments above are equal.
        group: whose machines; none: your own.
        expected: machines to wait for; 0: begin when nobody new comes.
        wait_s: how long to wait for them.
        timeout_s: how long each sum may take.
        allow_plain: in mode plain: let machines of several owners see each other's counts.
    """

    items: list[str]
    k: Annotated[int, msgspec.Meta(ge=1, le=K_MAX)] = 20
    mode: Literal["auto", "ldp", "plain", "central"] = "auto"
    epsilon: float | None = None
    vocabulary: list[str] | None = None
    search: Way = "graded"
    name: str = ""
    group: str | None = None
    expected: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    wait_s: Seconds = 60.0
    timeout_s: Seconds = 60.0
    allow_plain: bool = False


class TopKResult(msgspec.Struct, kw_only=True):
    """An answer.

    Attributes:
        top_k: the items.
        round: how the last sum came about.
        earlier: ids of the sums before it.
        left_out: machines that a sum went on without.
    """

    top_k: TopK
    round: RoundInfo
    earlier: list[str]
    left_out: list[RoundMember]


@method("fed.top_k", scope="rounds")
async def top_k(call: Call, p: TopKParams) -> TopKResult:
    """Find the most frequent items of all machines; each reports its own records with noise."""
    _refuse(p)
    services = call.services
    group = None if p.group is None else find_group(services, p.group)
    offload = services.rounds.offload
    try:
        question = await offload.run(lambda: _question(services, p, group))
    except UsageError as error:
        raise RpcError("invalid_params", str(error)) from None
    try:
        found, sums = await _converse(services, question)
    except RoundError as error:
        raise RpcError(ERROR_OF[error.reason], str(error), data={"reason": error.reason}) from None
    except UsageError as error:
        raise RpcError("aborted", str(error)) from None
    return await _result(services, found, sums)


def _refuse(p: TopKParams) -> None:
    """Refuse what promises more than can be kept, before anything is read.

    Raises:
        RpcError: why.
    """
    if p.mode == "central":
        raise RpcError(
            "refused",
            "noise on the sum (central differential privacy) costs more with every question, and no"
            " ledger keeps the account yet: its promise would be empty",
            remedy="Use mode ldp, where each record's report is private by itself; or plain.",
        )
    if p.mode == "plain" and p.epsilon is not None:
        raise RpcError("invalid_params", "mode plain adds no noise: leave epsilon out, or use ldp")
    if p.mode == "plain" and p.search != "graded":
        raise RpcError("invalid_params", "mode plain counts exactly: leave search out, or use ldp")
    if len(p.items) > ITEMS_MAX:
        raise RpcError(
            "too_large",
            f"{len(p.items):,} items: at most {ITEMS_MAX:,} a call",
            remedy="Take a sample of them: shares stay the same, noise grows.",
            data={"limit": ITEMS_MAX},
        )


def _question(services: Services, p: TopKParams, group: bytes | None) -> ItemsQuestion:
    from daemon.fed_items import ItemsQuestion

    # Without noise there is nothing to draw: no secret is made or read, and none can be in the way.
    secret = b""
    if p.mode != "plain":
        secret = noise_key(Path(services.paths.noise_key), services.env.rng)
    return ItemsQuestion(p, group, secret)


async def _converse(services: Services, question: ItemsQuestion) -> tuple[TopK, list[Total]]:
    from daemon.fed_items import converse

    among = await services.rounds.gather(question.ask)
    names = await device_names(services)
    machines = [shown_name(names, peer, services) for peer in among.peers]
    talk = question.begin(machines, among.place)
    return await converse(among, talk, services.rounds.offload)


async def _result(services: Services, found: TopK, sums: list[Total]) -> TopKResult:
    infos = [await round_info(services, total.report) for total in sums]
    left_out = {one.peer: one for info in infos for one in info.members if one.status != "included"}
    return TopKResult(
        top_k=found,
        round=infos[-1],
        earlier=[info.id for info in infos[:-1]],
        left_out=list(left_out.values()),
    )
