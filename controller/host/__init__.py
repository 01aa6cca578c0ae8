"""The operating system of one host, as seen by everything above it.

Lives here: processes (start detached, identify, signal, await), the run lock, durable files,
control groups, facts about the host, the log keeper and the files it writes, crash points.

May not live here: any word about Instances, VMM kinds or Kubernetes. Paths, uids and names arrive
as arguments; this room does not know the layout of the state directory, and reads no settings.
"""
