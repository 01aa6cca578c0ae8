"""Drivers: our code for each kind of VMM, behind one small protocol.

``driver`` is the contract, ``machine`` what a VMM is made of, ``registry`` which kinds there are.
``birth`` (how a process comes up) and ``held`` (what is held of a living one) are the same for
all; ``qemu`` is one kind, ``hollow`` another that has no guest and exists for tests only. No
driver's name appears outside this room: callers ask ``registry.drivers()`` by the word in the spec.
What may not live here: what should be done (``core``), records, the API.
"""
