"""The Open Inference Protocol over gRPC. Loaded only where it is asked for, as it needs the extra `grpc`.

`messages` are the protocol's messages, `codec` reads and writes them, `service` answers calls on the event loop,
`direct` and `aio` are the lanes by which calls come, `server` has the port.
"""
