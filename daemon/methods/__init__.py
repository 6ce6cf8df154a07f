"""RPC methods, a module per namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def all_methods() -> list[ModuleType]:
    """The modules whose methods a daemon serves."""
    from daemon.methods import (
        agents,
        backup,
        blobs,
        config,
        conflicts,
        erasing,
        export,
        fed,
        fed_models,
        fed_topk,
        group,
        hooks,
        invite,
        job,
        job_after,
        job_control,
        job_plan,
        job_submit,
        memory,
        net,
        peers,
        process,
        rpc,
        state,
        sync,
        trust,
        verify,
    )

    return [
        agents,
        backup,
        blobs,
        config,
        conflicts,
        erasing,
        export,
        fed,
        fed_models,
        fed_topk,
        group,
        hooks,
        invite,
        job,
        job_after,
        job_control,
        job_plan,
        job_submit,
        memory,
        net,
        peers,
        process,
        rpc,
        state,
        sync,
        trust,
        verify,
    ]
