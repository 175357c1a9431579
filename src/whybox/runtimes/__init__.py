"""Who it belongs to: names and exit records, never a diagnosis."""
