"""The engines a node may use, and the mesh as the coordinator sees it with them in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.errors import PlanError
from federated.jobs.engines.crew import Crew
from federated.jobs.engines.portable import portable_handlers
from federated.jobs.engines.seam import engine_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federated.jobs.engines.seam import Engine
    from federated.jobs.sessions import Serve
    from federated.jobs.worker import Offers
    from federated.seams import GroupId, Mesh, TrustClass
    from p2p.env import Env, Offload
    from p2p.identity import PeerId

HERE = frozenset({"local", "peers"})


class Engines:
    """The engines that the operator named.

    Args:
        makes: how to make one, by its address.
        handlers: of this node.
        env: clocks and random numbers.
        offload: where long computations go.
    """

    def __init__(
        self, makes: Mapping[str, Callable[[], Engine]], handlers: Offers, env: Env,
        offload: Offload,
    ) -> None:  # fmt: skip
        self._handlers = handlers
        self.by_id = {engine_id(address): address for address in makes}
        self.serves: dict[PeerId, Serve] = {
            engine_id(address): Crew(make, lambda: portable_handlers(handlers), env, offload).serve
            for address, make in makes.items()
        }

    def check(self, engine: str, handlers: list[tuple[str, str]]) -> None:
        """Refuse an engine that may not be used, or that cannot do a job.

        Args:
            engine: what the spec says, neither `local` nor `peers`.
            handlers: (place in the spec, id) of each handler.

        Raises:
            PlanError: `not_permitted` or `unknown_handler`.
        """
        if engine not in self.by_id.values():
            raise PlanError(
                "not_permitted",
                f"{engine!r} is none of this machine's `[jobs] engines`; only its operator can add"
                " one, on this machine or behind tls://",
                path="engine",
            )
        known = portable_handlers(self._handlers)
        for path, handler in handlers:
            if handler not in known:
                raise PlanError(
                    "unknown_handler",
                    f"an engine computes {', '.join(sorted(known))}, nothing that depends on this"
                    " machine or acts on the world",
                    path=path,
                )


class DoorWithEngines:
    """`board.Door`: engines are devices of ours, everybody else is whom the mesh knows.

    Args:
        mesh: peers.
        engines: ours.
    """

    def __init__(self, mesh: Mesh, engines: Engines) -> None:
        self._mesh = mesh
        self._engines = engines

    @property
    def id(self) -> PeerId:
        """This node."""
        return self._mesh.id

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        """What a peer is to us."""
        return "own" if peer in self._engines.by_id else self._mesh.trust(peer, group)

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:
        """Whose device it is."""
        return self._mesh.owner(self.id if peer in self._engines.by_id else peer, group)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether a peer signed."""
        return self._mesh.verify(peer, domain, body, signature)
