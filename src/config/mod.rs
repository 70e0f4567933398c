//! Configuration: raw, then checked.
