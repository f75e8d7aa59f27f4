"""A gRPC client that is not ours: grpcio, with stubs that grpcio-tools makes of the .proto file.

wire = third_party()
stub = wire.stub(channel)
stub.GetLinkedPod(wire.messages.GetLinkedPodRequest(user=wire.user("prod", "u1", "svc")))
"""

import importlib.util
import sys
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import grpc_tools
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

PROJECT = Path(__file__).parents[2]


class Wire(NamedTuple):
    """What grpcio-tools made."""

    messages: Any
    services: Any

    def stub(self, channel: Any) -> Any:
        """The route service at the other end of a channel."""
        return self.services.RouteServiceStub(channel)

    def user(self, namespace: str, uid: str, service_name: str) -> Any:
        """A user of a service."""
        return self.messages.User(namespace=namespace, uid=uid, service_name=service_name)


@cache
def third_party() -> Wire:
    """The stubs, made once a run."""
    with tempfile.TemporaryDirectory() as folder:
        well_known = resources.files(grpc_tools).joinpath("_proto")
        failed = protoc.main(
            [
                "protoc",
                f"-I{PROJECT / 'proto'}",
                f"-I{well_known}",
                f"--python_out={folder}",
                f"--grpc_python_out={folder}",
                "podlink/v1/route.proto",
            ]
        )
        assert not failed, "protoc refuses the .proto file"
        made = Path(folder) / "podlink" / "v1"
        # The generated service imports `podlink.v1`, a name that our package has.
        service = made / "route_pb2_grpc.py"
        text = service.read_text().replace("from podlink.v1 import", "import")
        service.write_text(text)
        messages = _load("route_pb2", made / "route_pb2.py")
        return Wire(messages, _load("route_pb2_grpc", service))


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def error_info(error: Any) -> Any:
    """The google.rpc.ErrorInfo of a status that grpcio raised."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            return info
    raise AssertionError(f"no details: {error}")
