"""Sensors: what the kernel says while it happens, typed. One module and one BPF object each.

A sensor knows how to attach itself, what its events and tables hold, and what it falls back to
where the kernel offers less. What it means is said elsewhere: by ``trace``, or by a case.
"""
