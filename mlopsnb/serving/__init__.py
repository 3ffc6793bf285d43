"""The runtime: one server serves one model package over HTTP. Runs in images too.

Knows packages, formats and protocols; nothing of notebooks, tracking, targets or monitoring. The stages of a
request: `app` routes it, `v2` decodes it, `engine` runs the model, `v2` encodes the answer. `server` is the life
of the process, `listen` opens sockets, `handover` passes the public one on, `__main__` is the command. What is seen from
outside: `metrics`, `requestlog` into a `logfile`, `payloads`, `tracecontext`, `tracing`. What is kept of its traffic:
`counters` on a `reference` profile, in `windows`, and `capture`.

Where there are several processes, `supervisor` starts them and ends them, `dispatch` hands them connections, `worker`
is a server that gets its own so, `workers` says how many there are, and `board` is what they know of each other.
"""
