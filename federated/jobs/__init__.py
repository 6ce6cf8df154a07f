"""Jobs: a table to fill, computed by handlers on peers, checked, reduced and journalled.

`types` says what a job is, `plan` makes one runnable, `coordinator` (a machine without IO) runs it
through `state`, `schedule` and `verify`, `sessions` carries its items to peers, `worker` is the
other side, `journal` keeps what must survive, `service` is the face. Source: docs/specs/jobs.md.
"""
