"""The operator: one kopf process for each cluster, no root.

It gives Instances what only the cluster can: a reservation in the scheduler's eyes, an id, a node
and an epoch, to a fork those of its source; and it says so when a node falls silent. What an
Instance's VMM does is none of its business. ``app`` wires it, ``known`` and ``cluster`` are what it
knows of Instances and of the rest, ``instances`` carries out what ``core.placement`` decides.
Besides ``cli``, the only room that imports kopf.
"""
