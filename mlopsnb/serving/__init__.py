"""The runtime: one process serves one model package over HTTP. Runs in images too.

Knows packages, formats and protocols; nothing of notebooks, tracking, targets or monitoring. The stages of a
request: `app` routes it, `v2` decodes it, `engine` runs the model, `v2` encodes the answer. `server` is the life
of the process, `listen` opens sockets, `handover` passes the public one on, `__main__` is the command. What is seen from
outside: `metrics`, `requestlog` into a `logfile`, `payloads`, `tracecontext`, `tracing`.
"""
