"""Runs the demo. Exit code 0: every check held; 1: one did not."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import trio

from daemon.demo import job_steps, memory_steps, mesh_steps, round_steps, state_steps, steps
from daemon.demo.machine import CommandFailed, Machine
from daemon.demo.show import Show
from p2p.env import SystemEnv

STOP_S = 30.0
"""Longest wait for the three daemons to end."""


def main(*, keep: bool = False) -> int:
    """Show what Covey does, on this machine, in about a minute.

    Args:
        keep: leave the machines' folders; so does `KEEP=1` in the environment.
    """
    return trio.run(_run, keep or bool(os.environ.get("KEEP")))


async def _run(keep: bool) -> int:
    env = SystemEnv()
    show = Show(env)
    folder = Path(tempfile.mkdtemp(prefix="covey-demo-"))
    machines = []
    for name in ("laptop", "desktop", "server"):
        (folder / name).mkdir()
        # One machine with the model is enough to see it, and three would share two cores.
        model = "auto" if name == "desktop" else "none"
        machines.append(Machine(name, folder / name, COVEY_MEMORY__EMBEDDER=model))
    laptop, desktop, server = machines
    show.title(
        "Covey: one memory for the agents on all your machines",
        "three real daemons, real encrypted connections, no cloud",
    )
    try:
        await steps.start(show, env, machines)
        await steps.pair(show, env, laptop, [desktop, server])
        await steps.import_text(show, env, machines)
        await steps.agents(show, env, laptop, desktop)
        await steps.kill(show, env, desktop)
        await steps.part_and_heal(show, env, machines, server)
        await state_steps.apart(show, env, machines, server)
        await steps.attack(show, env, laptop)
        await state_steps.removal(show, env, machines)
        await mesh_steps.nat(show, env)
        await memory_steps.meaning(show, env, laptop, desktop)
        await memory_steps.lie(show, env, laptop)
        await memory_steps.erase(show, env, laptop)
        await state_steps.erasure(show, env, machines)
        await job_steps.fan_out(show, env, machines, folder)
        await round_steps.together(show, env, machines, folder)
    except CommandFailed as error:
        show.check(str(error), False)
    finally:
        with trio.move_on_after(STOP_S, shield=True):
            for machine in machines:
                await machine.stop()
        if keep:
            show.note(f"the machines' folders stay in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return show.verdict()
