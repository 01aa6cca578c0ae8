"""Drivers: our code for each kind of VMM, behind one small protocol.

``driver`` is the contract, ``machine`` what a VMM is made of; each sub-package is one kind. No
driver's name appears outside this room: callers ask ``drivers()`` by the word in the spec. What may
not live here: what should be done (``core``), records, the API.
"""
