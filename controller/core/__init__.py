"""The decisions: pure, synchronous, total.

Frozen values in, frozen values out. What should be (``desired``), what is (``observed``), what to
do (``plan`` and ``down``, of ``steps``), what to say (``conditions``), and the arithmetic they
need. Nothing here may do I/O, await, read a clock, roll dice or log: time, ids and facts are
arguments. If an executor has to choose, the plan was not finished.
"""
