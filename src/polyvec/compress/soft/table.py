"""MEMORIES: the kinds of memory by name.

A kind is a module: `forward(encoder, contexts)` returns a MemoryBatch. To add one: the class, its
line here, a recipe that uses it. Its arguments are its settings; `facts` fill themselves.
"""

from torch import nn

from polyvec.compress.soft import attending, beacons, nuggets, slots, strided, vectors
from polyvec.registry import Registry

MEMORIES: Registry[type[nn.Module]] = Registry(
    "memory",
    {
        "beacons": beacons.Beacons,
        "blocks": attending.Blocks,
        "digest": attending.Digest,
        "nuggets": nuggets.Nuggets,
        "pooled": attending.Pooled,
        "slots": slots.Slots,
        "soft": vectors.Soft,
        "strided": strided.Strided,
        "vector": vectors.Vector,
    },
)
