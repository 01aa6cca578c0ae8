"""QEMU (8.2 or newer): its arguments, its monitor, its states, and the driver made of them.

``argv`` and ``state`` are pure; ``monitor`` speaks QMP; ``binary`` knows the program, ``birth`` its
first second; ``driver`` is the contract of ``vmm.driver`` on top of them. What may not live here:
anything another kind of VMM would need too.
"""
