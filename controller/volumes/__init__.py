"""Volumes: the writable disks of guests, as raw files.

What lives here: making, checking and removing disk files, durably. What may not: mounting any of
them (a filesystem that a guest wrote is hostile), attaching them to a VMM, and deciding when one
may go.
"""
