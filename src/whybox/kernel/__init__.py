"""What the kernel says: one module per kernel file or protocol, reading apart from parsing."""
