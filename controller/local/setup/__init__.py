"""Makes this machine ready: what it lacks is installed or built, what it has is left alone.

Every piece of work is a value, a ``Step`` with the question whether it is done already, so a second
run does nothing and says so. ``machine`` lists the steps in order; ``sources``, ``packages`` and
``commands`` are how they reach apt; ``checks`` only looks, for ``torpor doctor``.

What may not live here: how anything is built (the room that owns it knows: ``local.binaries``,
``guest.initrd``, ``guest.artifacts``, ``host.logs``), and anything a real cluster's node needs.
"""
