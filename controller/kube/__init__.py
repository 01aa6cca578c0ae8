"""Everything Torpor says to a Kubernetes API server, and nothing about what it means.

Here: the client (generic verbs on raw dicts), the reflector (a cache that knows whether it can be
trusted), the keyed work queue, Leases, Events. Transport, TLS and authentication are
``kubernetes.aio``'s; the rest is ours because a cache for an agent that may delete things has to
say *synced*, has to notice what vanished during a relist, and must never read a failed list as an
empty one.

Not here: what an Instance is, which fields a controller may write, when to act. Nothing in this
room imports kopf, a driver, or a model of ``api``; objects are the plain dicts that the server
sent. Library exceptions end at this border (``errors``).
"""
