"""MEMORIES: the kinds of memory by name."""

from torch import nn

from polyvec.compress.soft import attending, kinds
from polyvec.registry import Registry

MEMORIES: Registry[type[nn.Module]] = Registry(
    "memory",
    {
        "beacons": kinds.Beacons,
        "blocks": attending.Blocks,
        "digest": attending.Digest,
        "pooled": attending.Pooled,
        "slots": kinds.Slots,
        "soft": kinds.Soft,
        "strided": kinds.Strided,
        "vector": kinds.Vector,
    },
)
