//! RESP: frame boundaries, requests, replies and their limits. Pure; borrows, never copies.

mod args;

pub use args::{Args, Span};
