//! The one integration-test binary: real servers, one module per subject.

mod command_keys;
