"""How it is shown: views take data and never read the kernel."""
