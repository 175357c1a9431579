"""Boots a Debian kernel in a virtual machine with this source tree and runs a command in it."""
