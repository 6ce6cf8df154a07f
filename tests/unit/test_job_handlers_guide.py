"""The guide to handlers: its settings hold, its function runs, its numbers are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from federated.jobs.config import HandlerConfig, JobsConfig, LlmConfig
from federated.jobs.handlers import expr, proc, runner_main
from federated.jobs.handlers.registry import build_handlers
from tests.helpers.job_handlers import make_batch, make_ctx

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "job-handlers.md").read_text()


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return str(found)


def settings() -> JobsConfig:
    jobs = tomllib.loads(block("toml"))["jobs"]
    return JobsConfig(
        files=jobs["files"],
        handlers=msgspec.convert(jobs["handlers"], dict[str, HandlerConfig]),
        llm=msgspec.convert(jobs["llm"], dict[str, LlmConfig]),
    )


def test_its_settings_switch_on_what_it_says() -> None:
    handlers = build_handlers(settings(), search=None, named={"research": b"r"}.get)
    assert handlers.unavailable == {}
    own = {info.id for info in handlers.offered_to("own", None)}
    assert own == {
        "echo@1", "hash@1", "wordcount@1", "files.list@1", "files.wordcount@1",
        "score@1", "shout@1", "llm:gemma",
    }  # fmt: skip
    research = {info.id for info in handlers.offered_to("stranger", b"r")}
    assert research == {"echo@1", "hash@1", "wordcount@1", "score@1"}


async def test_its_function_runs(tmp_path: Path) -> None:
    source = block("python")
    name = source.splitlines()[0].rpartition("/")[2]
    (tmp_path / name).write_text(source)
    config = msgspec.structs.replace(settings().handlers["score@1"], read=(str(tmp_path),))
    handler = proc.FunctionHandler("score@1", config)
    try:
        batch = make_batch({"text": "ha!!"}, {}, params={"weight": 3})
        assert await handler.run(batch, make_ctx()) == [
            (0, {"score": 6}, ""),
            (1, None, "no_text"),
        ]
    finally:
        await handler.aclose()


def test_its_numbers_are_the_codes() -> None:
    for text in (
        f"{runner_main.PROCESSES_MAX} processes, {runner_main.OPEN_FILES_MAX} open files",
        f"files of {runner_main.FILE_BYTES_MAX >> 20} MiB",
        f"up to {proc.TASKS_MAX:,} tasks",
        f"{expr.ROW_WALL_S:g} s, {expr.ROW_MEM_BYTES >> 20} MiB",
    ):
        assert text in GUIDE, text
