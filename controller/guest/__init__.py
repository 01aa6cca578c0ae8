"""What goes into a guest, and the host's end of the channel to it.

Lives here: the kernel (fetched, unpacked, kept while in use), the init program (Rust, built once
by content), the initrd made of both, the config disk, the frame format, the agent channel and the
reports of a guest's life.

May not live here: VMMs and their arguments, disks of an Instance other than the config disk, any
decision about what a guest's end means for its Instance. Every byte that comes from a guest is
hostile and bounded before it is used.
"""
