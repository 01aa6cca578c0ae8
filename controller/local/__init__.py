"""A whole cluster on this machine, for trying Torpor and for its tests.

What lives here: the control plane's programs (found or built), their certificates and flags, an OCI
registry, Node objects with their Leases and tokens, and the supervision of every process including
one node agent per Node and the operator. What may not live here: anything an Instance needs; on a
real cluster this package is never imported.

Threads, not asyncio: there are a dozen children, each watched by one thread that sleeps in wait(2),
and tests start the same control plane from fixtures that have no event loop. Every child has a
session of its own and is known by (pid, start time, boot id), so that ``status`` and ``down`` work
from another process and after the supervisor died.
"""
