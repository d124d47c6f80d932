//! The relay: worker threads that accept caught flows and move their bytes.
