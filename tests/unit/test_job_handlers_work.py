"""Handlers behind real workers: what a job gets back from peers that offer them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.jobs.handlers.expr import Expr
from federated.jobs.handlers.files import files_handlers
from federated.jobs.handlers.memory import MemorySearch, Question
from federated.jobs.handlers.names import full_id
from federated.jobs.types import JobSpec, TopK
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    from federated.jobs.types import Row
    from tests.helpers.jobs_kit import Office

CODE = """
def map(row):
    if row["n"] == 3:
        raise ValueError("three")
    return {"square": row["n"] ** 2}
"""


def test_an_expression_is_computed_by_the_peers(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        workers = [Expr(slots=1), Expr(slots=1)]
        boss = await office.desk(1)
        for number, worker in enumerate(workers, 2):
            await office.desk(number, handlers=[worker])
        rows: list[Row] = [{"n": n} for n in range(40)]
        spec = JobSpec(handler=full_id("expr:"), rows=rows, params={"code": CODE}, max_retries=1)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        found = await boss.table(ident)
        for worker in workers:
            await worker.aclose()
        assert found == [{"square": n**2} if n != 3 else "exception" for n in range(40)]

    play_office(scenario, tmp_path, seed=1)


def test_words_are_counted_where_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("one two two")
    (tmp_path / "notes" / "b.md").write_text("two three")

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, handlers=files_handlers({"notes": str(tmp_path / "notes")}))
        listing = JobSpec(handler="files.list@1", rows=[{"root": "notes", "pattern": "*.md"}])
        ident = await boss.jobs.submit(listing, agent="", group=None)
        await boss.jobs.finished(ident)
        [answer] = await boss.table(ident)
        assert isinstance(answer, dict)
        paths = [file["path"] for file in answer["files"]]  # type: ignore[attr-defined]
        assert paths == ["a.md", "b.md"]
        counting = JobSpec(
            handler="files.wordcount@1",
            rows=[{"root": "notes", "path": path} for path in [*paths, "../secret"]],
            reduce=TopK(n=1),
            max_retries=0,
        )
        ident = await boss.jobs.submit(counting, agent="", group=None)
        await boss.jobs.finished(ident)
        assert (await boss.table(ident))[2] == "bad_path"
        assert await boss.jobs.journal.reduced(ident, 0, 10) == [b'{"key":"two","sum":3}']

    play_office(scenario, tmp_path, seed=2)


def test_a_question_reaches_the_memory_of_a_peer(tmp_path: Path) -> None:
    async def search(question: Question) -> list[Row]:
        return [{"text": f"about {question.query}"}]

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, handlers=[MemorySearch(search)])
        spec = JobSpec(handler="memory.search@1", rows=[{"query": "cats"}])
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"memories": [{"text": "about cats"}]}]

    play_office(scenario, tmp_path, seed=3)
