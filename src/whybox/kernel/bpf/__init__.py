"""BPF programs: what the running kernel says at the moment when it happens.

The programs are C with CO-RE (``*.bpf.c`` beside their users), compiled when whybox is built and
loaded through the distribution's ``libbpf.so.1``. Nothing is imported here: a diagnosis that
attaches nothing pays nothing.
"""
