"""The node agent: one process for each node, root, that makes VMMs agree with Instances.

``app`` wires it, ``intake`` turns watch events into wishes, ``worker`` is the loop (observe, plan,
act, report), ``adopt`` takes over what lives at start, ``sweep`` looks for what nobody owns,
``record`` is what must survive a crash. Decisions live in ``core``; here they are carried out.
"""
