"""Rebuilds idl/flyteidl2.fds from the published PyPI package `flyteidl2`.

Run it as `make refresh-idl` (or `uv run --no-project --with flyteidl2==2.0.53 python tools/refresh_idl.py`). The package's
`_pb2` modules carry their serialized descriptors; this collects every one of them with what they import, in dependency
order, and writes a single `google.protobuf.FileDescriptorSet`.
"""

import importlib
import pathlib
import pkgutil
import sys

import flyteidl2
from google.protobuf import descriptor_pb2


def load_all():
    modules = []
    for info in pkgutil.walk_packages(flyteidl2.__path__, "flyteidl2."):
        if info.name.endswith("_pb2"):
            modules.append(importlib.import_module(info.name))
    return modules


def main(target: pathlib.Path) -> None:
    out = descriptor_pb2.FileDescriptorSet()
    seen = set()

    def add(descriptor):
        if descriptor.name in seen:
            return
        seen.add(descriptor.name)
        for dependency in descriptor.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto.FromString(descriptor.serialized_pb)
        proto.ClearField("source_code_info")
        out.file.append(proto)

    for module in sorted(load_all(), key=lambda m: m.DESCRIPTOR.name):
        add(module.DESCRIPTOR)
    target.write_bytes(out.SerializeToString(deterministic=True))
    services = sum(len(f.service) for f in out.file)
    rpcs = sum(len(s.method) for f in out.file for s in f.service)
    print(f"{target}: {len(out.file)} files, {services} services, {rpcs} RPCs, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "idl/flyteidl2.fds"))
