"""How to make it happen: the box, the workloads, the labs, the proof."""
