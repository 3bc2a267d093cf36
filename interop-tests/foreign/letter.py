"""A caller of an agent that knows nothing but what the server's reflection says.

    letter.py ADDRESS SCHEME VALUE REQUEST_ID [--wait-for-answer]

Sends a letter with an attachment to whoever enrolled an identifier, follows
its events until it is delivered and read (and answered), reads the inbox, and is refused
twice on purpose. Prints one JSON object. Needs grpcio and grpcio-reflection;
there is no generated code.
"""

import argparse
import json

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

DEADLINE = 60
AGENT = "chancery.agent.v1.AgentService"
HEALTH = "grpc.health.v1.Health"
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
MESSAGE = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE


class Server:
    """Calls by name, with messages as dictionaries would be."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def services(self):
        return sorted(self.database.get_services())

    def call(self, service, name, /, **fields):
        """One request; the answer, or an iterator over the answers of a stream."""
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        stub = kind(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        return stub(request, timeout=DEADLINE)

    def name_of(self, enum, number):
        return self.pool.FindEnumTypeByName(enum).values_by_number[number].name


def error_types():
    """google.rpc.Status and google.rpc.ErrorInfo, as the specification has them."""
    file = descriptor_pb2.FileDescriptorProto(
        name="rpc.proto", package="google.rpc", syntax="proto3", dependency=["google/protobuf/any.proto"]
    )
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=5, label=1)
    status.field.add(name="message", number=2, type=STRING, label=1)
    status.field.add(
        name="details", number=3, type=MESSAGE, label=3, type_name=".google.protobuf.Any"
    )
    info = file.message_type.add(name="ErrorInfo")
    info.field.add(name="reason", number=1, type=STRING, label=1)
    info.field.add(name="domain", number=2, type=STRING, label=1)
    entry = info.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=STRING, label=1)
    entry.field.add(name="value", number=2, type=STRING, label=1)
    info.field.add(
        name="metadata", number=3, type=MESSAGE, label=3, type_name=".google.rpc.ErrorInfo.MetadataEntry"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    types = ("google.rpc.Status", "google.rpc.ErrorInfo")
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in types]


def refusal(call):
    """What a call that must fail was refused for."""
    status_type, info_type = error_types()
    try:
        call()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        status = status_type.FromString(trailers["grpc-status-details-bin"])
        infos = [any for any in status.details if any.type_url.endswith("/google.rpc.ErrorInfo")]
        info = info_type.FromString(infos[0].value)
        return {
            "code": error.code().name,
            "infos": len(infos),
            "reason": info.reason,
            "domain": info.domain,
            "metadata": dict(info.metadata),
            "message": error.details(),
        }
    raise SystemExit("a call that had to fail did not")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("address")
    arguments.add_argument("scheme")
    arguments.add_argument("value")
    arguments.add_argument("request_id")
    arguments.add_argument("--wait-for-answer", action="store_true")
    arguments = arguments.parse_args()
    server = Server(arguments.address)
    recipient = {"scheme": arguments.scheme, "value": arguments.value}
    attachment = {"file_name": "map.svg", "media_type": "image/svg+xml", "data": b"<svg/>" * 1000}
    letter = {
        "markdown": "# From a stranger\n\nWritten without a line of generated code.",
        "language": "en",
        "attachments": [attachment],
    }
    request = {"request_id": arguments.request_id, "recipient": recipient, "letter": letter}

    health = server.call(HEALTH, "Check", service=AGENT)
    reachable = server.call(AGENT, "Resolve", recipient=recipient)
    sent = server.call(AGENT, "Send", **request)
    again = server.call(AGENT, "Send", **request)

    wanted = {"EVENT_KIND_DELIVERED", "EVENT_KIND_READ"}
    if arguments.wait_for_answer:
        wanted.add("EVENT_KIND_ANSWERED")
    kinds = []
    events = server.call(AGENT, "Events")
    for event in events:
        if event.request_id == arguments.request_id:
            kinds.append(server.name_of("chancery.agent.v1.EventKind", event.kind))
            if wanted.issubset(kinds):
                break
    events.cancel()

    inbox = [
        {
            "markdown": item.markdown,
            "request_id": item.request_id,
            "answers_ours": item.in_reply_to == sent.message_id,
            "has_in_reply_to": item.in_reply_to != "",
        }
        for item in server.call(AGENT, "Inbox", drain=True)
    ]
    wrong = {**recipient, "value": "85073003329"}
    other = {**request, "letter": {"markdown": "Another letter under the same id."}}
    print(
        json.dumps(
            {
                "services": server.services(),
                "health": health.status,
                "reachability": reachable.reachability,
                "message_id": sent.message_id,
                "same_again": again.message_id == sent.message_id and again.thread_id == sent.thread_id,
                "accepted_at_ms": sent.accepted_at_ms,
                "events": kinds,
                "inbox": inbox,
                "bad_identifier": refusal(lambda: server.call(AGENT, "Resolve", recipient=wrong)),
                "reused": refusal(lambda: server.call(AGENT, "Send", **other)),
            }
        )
    )


if __name__ == "__main__":
    main()
