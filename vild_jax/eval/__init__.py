"""Results files to metrics; numpy only, no accelerator."""
