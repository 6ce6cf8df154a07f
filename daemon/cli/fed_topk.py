"""`covey fed topk`: the most frequent items of everybody's data."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.fed_input import above_0, read_items
from daemon.cli.fed_meeting import add_data, add_meeting, ask_everybody, meeting_of
from daemon.cli.options import add_verb
from federated.rounds.statistics.limits import K_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.options import Verbs
    from daemon.json_types import Json

MODES = ("auto", "ldp", "plain", "central")
SEARCHES = ("graded", "tap")
K_DEFAULT = 20


def _how_many(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal() or not 1 <= int(text) <= K_MAX:
        raise ArgumentTypeError(f"{text!r}: give 1 to {K_MAX}")
    return int(text)


def configure_topk(verbs: Verbs) -> None:
    """Arguments of `covey fed topk`."""
    sub = add_verb(verbs, "topk", "the most frequent items, each record reported with noise")
    add_data(sub, "an item a line, CSV or JSON Lines")
    sub.add_argument(
        "-k", type=_how_many, metavar="N",
        help=f"how many (1 to {K_MAX}; default {K_DEFAULT}, or all of a shorter vocabulary)",
    )  # fmt: skip
    sub.add_argument(
        "--epsilon", type=above_0, metavar="E",
        help="what a record's report may cost: less is more private and noisier (4)",
    )  # fmt: skip
    sub.add_argument(
        "--mode", choices=MODES, default="auto",
        help="auto is ldp: noise in each record; plain: no noise; central: refused yet",
    )  # fmt: skip
    sub.add_argument(
        "--vocabulary", metavar="FILE",
        help="all items that may come, a line each, the same file everywhere (default: words of the"
        " letters a to z, by their first six)",
    )  # fmt: skip
    sub.add_argument(
        "--search", choices=SEARCHES, default="graded",
        help="how noisy reports are searched; tap (arXiv 2412.14832) finds fewer: to compare with",
    )  # fmt: skip
    add_meeting(sub)
    sub.add_argument(
        "--allow-plain", action="store_true",
        help="mode plain: let machines of several owners see each other's counts",
    )  # fmt: skip


def run_topk(args: argparse.Namespace) -> int:
    """Ask, and show what is found."""
    params: dict[str, Json] = {
        **meeting_of(args),
        "items": list(read_items(args.file, args.column)),
        "k": K_DEFAULT if args.k is None else args.k,
        "mode": args.mode,
        "allow_plain": args.allow_plain,
        "search": args.search,
    }
    if args.epsilon is not None:
        params["epsilon"] = args.epsilon
    if args.vocabulary is not None:
        vocabulary = read_items(args.vocabulary, None)
        params["vocabulary"] = list(vocabulary)
        if args.k is None:  # a list of five pages has no twenty to show
            params["k"] = min(K_DEFAULT, len(set(vocabulary)))
    answer = out.mapping(ask_everybody(args, "fed.top_k", params))
    if args.json:
        out.say_json(answer)
        return 0
    _show(answer, quiet=args.quiet, tap=args.search == "tap")
    return 0


def _show(answer: dict[str, Json], *, quiet: bool, tap: bool = False) -> None:
    found = out.mapping(answer.get("top_k"))
    items, least = out.rows(found.get("items")), out.number(found.get("stands_out"))
    noisy = out.text(found.get("mode")) != "plain"
    out.table(
        ["item", *(["about", "+-", ""] if noisy else ["count"])],
        [_line(one, noisy=noisy) for one in items],
    )
    info = out.mapping(answer.get("round"))
    names = sorted(
        out.text(one.get("machine"))
        for one in out.rows(info.get("members"))
        if one.get("status") == "included"
    )
    records = int(out.number(found.get("records")))
    peers = int(out.number(found.get("peers")))
    out.say(f"{records:,} items of {peers} machines{': ' if names else ''}{', '.join(names)}")
    out.say(_promise(found, noisy=noisy))
    if not quiet:
        _notes(answer, found, items, least, tap=tap)


def _line(one: dict[str, Json], *, noisy: bool) -> list[str]:
    item = out.one_line(out.text(one.get("item")), 60)
    count = f"{out.number(one.get('count')):,.0f}"
    if not noisy:
        return [item, count]
    return [item, count, f"{out.number(one.get('sd')):,.0f}", "" if one.get("sure") else "?"]


def _promise(found: dict[str, Json], *, noisy: bool) -> str:
    mechanism = out.text(found.get("mechanism"))
    if not noisy:
        return f"no noise: {mechanism}"
    return f"epsilon {out.number(found.get('epsilon')):g}: {mechanism}"


def _notes(
    answer: dict[str, Json], found: dict[str, Json], items: list[dict[str, Json]], least: float,
    *, tap: bool,
) -> None:  # fmt: skip
    if any(not one.get("sure") for one in items):
        where = " of one machine" if tap else ""
        out.note(
            f"? may be noise: an item stands out from about {least:,.0f}{where} on. More items,"
            " more machines or a larger --epsilon show more"
        )
    others = int(out.number(found.get("others")))
    if others:
        out.note(f"{others:,} items of this machine have no code and count for no item")
    for one in out.rows(answer.get("left_out")):
        out.note(
            f"{out.text(one.get('machine'))}: {out.text(one.get('status'))},"
            f" {out.text(one.get('reason'))}"
        )
    if out.text(found.get("mode")) != "plain":
        out.note(
            "asked again, equal records give equal reports: the others see whether any changed."
            " Then, or with another --epsilon or --vocabulary, all are reported anew and cost that"
            " epsilon as well"
        )
    ident = out.text(out.mapping(answer.get("round")).get("id"))
    out.note(f"`covey fed explain {ident[:8]}` shows how it came about")
