//! Commands: what each one is, which class it belongs to, where its keys are.
//!
//! ```text
//!  commands.json --> Row --> Command (class, lane, key specs) --> Table --> lookup(args) --> keys, blocks, fences
//!  COMMAND reply --> Row ------------------------------------------^ merged_with
//! ```
//! Pure: knows no connection and no shard. What a command *is* comes from servers; what pointsman does with it (class,
//! white list of lanes, fences) is decided by hand in `class` and `lane`.

mod blocking;
mod class;
mod concern;
mod entry;
mod flags;
mod index;
mod keys;
mod lane;
mod options;
pub mod refusal;
pub mod reply;
mod row;
mod spec;
mod table;
#[cfg(test)]
mod testing;

pub use blocking::Unit;
pub use class::Class;
pub use concern::{Concern, Own};
pub use entry::{Command, CommandId, FenceScope, looser_arity};
pub use flags::Flags;
pub use keys::{KeyError, KeyPosition, KeyPositions};
pub use row::{Row, RowSpec};
pub use spec::KeyKind;
pub use table::{Lookup, Table};
