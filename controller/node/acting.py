"""What every step starts with: the record, and the VMM that it speaks of."""

from controller.core.desired import Desired
from controller.errors import Bug, Retry
from controller.node.observe import handle_of
from controller.node.parts import Parts
from controller.node.record import Record
from controller.vmm.driver import Driver, Handle


def record_of(parts: Parts, desired: Desired) -> Record:
    """The record of the Instance. Raises Bug when there is none."""
    record = parts.records.get(desired.uid)
    if not isinstance(record, Record):
        raise Bug(f"instance {desired.uid}: a step needs its record, and there is none")
    return record


def new_record(parts: Parts, desired: Desired, **born: object) -> Record:
    """The first record of an Instance, with what it is ``born`` with. Not saved.

    Raises Retry (NoFreeUid).
    """
    own = {
        "uid": desired.uid,
        "namespace": desired.namespace,
        "name": desired.name,
        "id": desired.id,
        "install_id": parts.settings.install_id,
        "epoch": desired.epoch,
        "index": parts.records.free_index(parts.settings.uid_count),
    }
    return Record.model_validate({**own, **born})


def update(parts: Parts, record: Record, **changes: object) -> Record:
    """Write the record with these changes, durably."""
    return parts.records.save(record.model_copy(update=changes))


def update_run(parts: Parts, record: Record, **changes: object) -> Record:
    """Write the open run with these changes, durably."""
    if record.open is None:
        raise Bug(f"instance {record.uid}: a step needs an open run, and there is none")
    return update(parts, record, open=record.open.model_copy(update=changes))


def vmm_of(parts: Parts, desired: Desired) -> tuple[Record, Driver, Handle]:
    """Record, driver and handle of the living VMM. Raises Retry when it cannot be found."""
    record = record_of(parts, desired)
    handle = handle_of(parts, record)
    if handle is None:
        raise Retry(f"instance {record.uid}: its VMM cannot be found", reason="Unknown")
    return record, parts.driver(record.hardware.hypervisor), handle
