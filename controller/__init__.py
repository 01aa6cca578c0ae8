"""Torpor: microVMs that sleep, declared in Kubernetes.

An ``Instance`` object says what should be; this package makes the VMM on some node agree, by the
fewest valid steps. The floors, from the top (an upper one may import a lower one, never the other
way; ``|`` siblings do not know each other; import-linter checks it)::

    cli
    operator | node | local
    vmm | memory | images | volumes | network | devices | guest | kube
    host
    core            pure: no I/O, no asyncio, no time, no random, no logging
    api             pydantic models <-> CRDs; no I/O
    errors | settings | metrics

One pass for one Instance is: observe (ask VMM, kernel, disk) -> plan (pure) -> act (one step at a
time) -> report (one status write, none if nothing changed).
"""

__version__ = "0.1.0"
