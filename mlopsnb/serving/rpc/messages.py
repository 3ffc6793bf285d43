"""The messages of `inference.GRPCInferenceService` and of the health check as classes, made when this is loaded.

The tables stand in for code that protoc would generate: such code is long, and works with some versions of protobuf
alone, while all of them take a descriptor. The classes are in a pool of our own, where they cannot meet those that
another package made of the same protocol.
Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/open_inference_grpc.proto);
https://github.com/grpc/grpc-proto (grpc/health/v1/health.proto).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
HEALTH_PACKAGE = "grpc.health.v1"
HEALTH = f"{HEALTH_PACKAGE}.Health"
SERVING, NOT_SERVING = 1, 2
"""The health check's answers; what the wire carries of an enumeration is its number."""

_Field = descriptor_pb2.FieldDescriptorProto
_Fields = tuple[str, ...]
_PARAMETERS = "map InferParameter parameters"

_MESSAGES: dict[str, _Fields] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready 1",),
    "ModelReadyRequest": ("string name 1", "string version 2"),
    "ModelReadyResponse": ("bool ready 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name 1", "string version 2", "repeated string extensions 3"),
    "ModelMetadataRequest": ("string name 1", "string version 2"),
    "ModelMetadataResponse": (
        "string name 1",
        "repeated string versions 2",
        "string platform 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs 5",
    ),
    "ModelMetadataResponse.TensorMetadata": ("string name 1", "string datatype 2", "repeated int64 shape 3"),
    "ModelInferRequest": (
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        f"{_PARAMETERS} 4",
        "repeated ModelInferRequest.InferInputTensor inputs 5",
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs 6",
        "repeated bytes raw_input_contents 7",
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name 1",
        "string datatype 2",
        "repeated int64 shape 3",
        f"{_PARAMETERS} 4",
        "optional InferTensorContents contents 5",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("string name 1", f"{_PARAMETERS} 2"),
    "ModelInferResponse": (
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        f"{_PARAMETERS} 4",
        "repeated ModelInferResponse.InferOutputTensor outputs 5",
        "repeated bytes raw_output_contents 6",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name 1",
        "string datatype 2",
        "repeated int64 shape 3",
        f"{_PARAMETERS} 4",
        "optional InferTensorContents contents 5",
    ),
    # Of a parameter's choices one is set; a reader need not know that they exclude each other.
    "InferParameter": (
        "bool bool_param 1",
        "int64 int64_param 2",
        "string string_param 3",
        "double double_param 4",
        "uint64 uint64_param 5",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents 1",
        "repeated int32 int_contents 2",
        "repeated int64 int64_contents 3",
        "repeated uint32 uint_contents 4",
        "repeated uint64 uint64_contents 5",
        "repeated float fp32_contents 6",
        "repeated double fp64_contents 7",
        "repeated bytes bytes_contents 8",
    ),
}
"""Each message's fields: [repeated | optional | map] TYPE NAME NUMBER. A map's keys are strings."""

_HEALTH_MESSAGES: dict[str, _Fields] = {
    "HealthCheckRequest": ("string service 1",),
    "HealthCheckResponse": ("int32 status 1",),
}


def _file(name: str, package: str, messages: dict[str, _Fields]) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for path, fields in messages.items():
        outer, _, name = path.rpartition(".")
        made[path] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for field in fields:
            _add(made[path], path, field)
    return file


def _add(message: Any, path: str, text: str) -> None:
    *labels, kind, name, number = text.split()
    if "map" in labels:
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add(entry, path, "string key 1")
        _add(entry, path, f"optional {kind} value 2")
        labels, kind = ["repeated"], f"{path}.ParametersEntry"
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if "repeated" in labels else _Field.LABEL_OPTIONAL
    if kind[0].islower():
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file("open_inference.proto", PACKAGE, _MESSAGES))
_pool.Add(_file("health.proto", HEALTH_PACKAGE, _HEALTH_MESSAGES))


def message(name: str) -> Any:
    """Return the class of the message *name*."""
    package = HEALTH_PACKAGE if name in _HEALTH_MESSAGES else PACKAGE
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{package}.{name}"))


METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""The calls of the service; each takes its `…Request` and gives its `…Response`."""
