"""Memory images: what a guest's RAM is made of while it sleeps, and how it gets there and back.

What lives here: finding the RAM of a process and the pages in it that changed, copying them out and
back in, the formats of base and delta, the manifest that makes them a snapshot, and the store that
shares immutable files among Instances and removes what no manifest names.

What may not: a VMM's name or protocol, the Instance API, the record, the layout of the state
directory. This room knows a process id and an address range; that the process stands still while
its memory is read is the caller's promise. All of it blocks: callers on an event loop use a thread.
"""
