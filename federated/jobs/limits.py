"""Limits of jobs, in one place; docs/specs/jobs.md has the same table and a test compares them."""

from __future__ import annotations

from typing import Final

# tasks.md s.13: what one job may be.
ROWS_MAX: Final = 100_000
ROW_BYTES_MAX: Final = 65_536
ROWS_BLOB_BYTES_MAX: Final = 64 * 2**20
TEMPLATE_BYTES_MAX: Final = 65_536
COLUMNS_MAX: Final = 256
OUTPUT_BYTES_MAX: Final = 2**20
REDUCE_BYTES_MAX: Final = 64 * 2**20
JOBS_LIVE_MAX: Final = 64
JOBS_AGENT_MAX: Final = 16
STRANGER_TASKS_MAX: Final = 8
# tasks.md s.2: one task.
BATCH_ROWS_MAX: Final = 32
BATCH_BYTES_MAX: Final = 262_144
# tasks.md s.4: the wire.
ITEM_BYTES_MAX: Final = 262_144
# A task's answer that travels in an item, with what is around it; a larger one is a blob.
RESULT_BYTES_MAX: Final = 196_608
# Of all specs that a worker keeps for one coordinator: decoded they take some twenty times as much.
SPECS_BYTES_MAX: Final = 4 * 2**20
# Text that a template may become: a row's cells, many times over.
FILLED_CHARACTERS_MAX: Final = 262_144
OFFER_TASKS_MAX: Final = 64
INLINE_BYTES_MAX: Final = 65_536
DETAIL_BYTES_MAX: Final = 256
# tasks.md s.2, canonical form.
DEPTH_MAX: Final = 32
INT_MAX: Final = 2**53
