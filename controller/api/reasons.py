"""The words of conditions: types, and the reasons that programs may match on, with their meaning.

They are API: a word never changes its meaning and is never reused. A test compares them with what
the decisions in ``core`` really say, so that no word is said that is not explained here. Reasons
that come from an error on the node (``vmm``, ``host``, ``guest``) are for people and may be others.
What does not live here: which of them holds (``core``).
"""

from collections.abc import Mapping
from typing import Final

TYPES: Final[Mapping[str, str]] = {
    "Ready": "what is matches what is asked, in every operating mode",
    "Scheduled": "CPU and memory are reserved for it on a Node",
    "Reconciling": "work is in flight; absent when settled",
    "Stalled": "no retry helps until the spec changes or somebody acts; absent otherwise",
    "RestartRequired": "env, command or args differ from what the guest runs with",
    "Exited": "the workload ended and the restart policy will not run it again",
}

READY: Final[Mapping[str, str]] = {
    # with True
    "Running": "the guest says that its workload runs",
    "Paused": "the guest's virtual CPUs are stopped",
    "Standby": "no VMM; memory and disk are kept",
    "Stopped": "no VMM; the disk is kept",
    # on the way; Reconciling says the same
    "Pending": "nobody, or not yet the node agent, has acted on it",
    "WaitingForNode": "no reservation yet; Scheduled says why",
    "Unscheduled": "the node agent waits for a reservation",
    "Reconciling": "steps are being done",
    "ImagePulling": "its image is on its way",
    "Booting": "the guest has not started its workload yet",
    "Stopping": "the guest is shutting down",
    "GuestSilent": "the guest took too long to start its workload",
    "StorageFull": "the Node's disk is full, the guest is held until there is space",
    "KernelMissing": "the Node has no guest kernel yet",
    "StaleView": "what was read is older than what the node agent knows; it reads again",
    "Timeout": "a step took too long; it is looked at again",
    "SavingMemory": "it goes to sleep: its memory is being written to disk",
    "Waking": "it wakes: its memory is being loaded",
    "IdentityPending": "the guest has not acknowledged its clock, random numbers or identity yet",
    # the source of a fork
    "SourceNotFound": "there is no Instance of the name in spec.forkFrom; the fork waits for one",
    "SourceNotReady": "its source has no disk to fork yet; the fork waits for it",
    "SourceRunning": "its source is Running or Paused, and spec.forkFrom.fromRunning is false",
    "SourceDeleting": "its source is being deleted",
    "CrashLoopBackOff": "it failed again and again; the next restart waits",
    # it ended, or was ended
    "Completed": "the workload ended with exit code 0",
    "Failed": "the workload or its VMM ended in any other way",
    "Evicted": "it was put to sleep, or stopped, because its reservation is taken away",
    "MemoryConsumed": "it died after it woke; the memory it woke from is never used again",
    "SnapshotFailed": "its memory could not be written to disk; the guest goes on as before",
    "NodeStopping": "it was brought down because its node agent stops all guests",
    # nobody can tell
    "Unknown": "its state cannot be told; status.stateError says why",
    "NodeUnreachable": "its node agent is silent; the guest is left alone",
    # Stalled says the same
    "DiskMissing": "its writable disk is gone from the node",
    "SnapshotCorrupt": "the memory on disk is damaged; it is not loaded, and kept",
    "SnapshotIncompatible": "this node's VMM cannot load the memory on disk; it is kept",
    "SourceGone": "its source was deleted before it could be forked",
    "ForkCycle": "forks wait for each other in a circle",
    "WorkloadInherited": "env, command or args are given, but the fork's memory has its source's",
    "NoPath": "no legal way leads from what is to what is asked",
    "SpecInvalid": "the stored object breaks today's rules; its guest is left as it is",
    "RecordNewer": "its record on the node was written by a newer release",
    "RecordCorrupt": "its record on the node cannot be read",
}

SCHEDULED: Final[Mapping[str, str]] = {
    "Scheduled": "reserved; the only reason with True",
    "Unschedulable": "the scheduler found no Node (its own words; other reasons of its may come)",
    "ReservationRefused": "quota, limits or admission refused the reservation Pod",
    "ReservationLost": "the Pod vanished; a new one is made for the same Node",
    "Evicting": "the reservation is being taken away: the guest is put to sleep",
    "NamespaceTerminating": "its namespace is being deleted: the guest is stopped, not saved",
    "Released": "the node agent gave the reservation back",
    "NotNeeded": "the operating mode needs no memory",
}

IMAGE: Final[Mapping[str, str]] = {
    "InvalidImageReference": "spec.image is no reference of a registry's image",
    "ImageNotFound": "the registry does not have it",
    "ImageDenied": "the registry does not give it to us",
    "RegistryNotAllowed": "the node's settings do not allow that registry",
    "RegistryUnreachable": "the registry does not answer",
    "RegistryTLS": "the registry's certificate is not trusted",
    "ImageUnsupported": "not an image that this node can run",
    "ImageUnpackFailed": "its content could not be turned into a filesystem",
    "NoSpace": "the node's disk is full",
}

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Ready": {**READY, **IMAGE},
    "Reconciling": {**READY, **IMAGE},
    "Stalled": {**READY, **IMAGE},
    "Scheduled": SCHEDULED,
    "RestartRequired": {"SpecChanged": "the change acts at the next boot"},
    "Exited": {word: READY[word] for word in ("Completed", "Failed")},
}
