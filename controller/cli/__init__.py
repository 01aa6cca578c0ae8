"""The ``torpor`` command, also installed as the kubectl plugin ``kubectl torpor``.

One module for each command or family of commands: it parses arguments, calls one room below, prints
what came back. ``main`` finds commands by name and imports only the one asked for; ``errors`` is
the single place where an exception becomes a line and an exit code.

What may not live here: anything that another process would want to call. A command that grows a
decision of its own moves that decision to the room it belongs to.
"""
