//! What one worker knows of scripts without asking anybody: a copy of a part of the library.
//!
//! Invariant: what stands here is in the library, or was when `generation` was the newest.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Scripts;
use super::library::{BODY_BYTES_MAX, Digest, Number};

/// How widely a script is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nobody has seen it run; its reply is to be listened to.
    Not,
    /// Not to us, and we do not want to know it.
    Ignored,
    /// The master has it, or had it.
    Somewhere,
    /// All replicas have it.
    Everywhere,
}

/// See the file's note.
#[derive(Debug, Default)]
pub struct Shelf {
    generation: u64,
    bodies: HashMap<Arc<[u8]>, Number, RandomState>,
    digests_of: u64,
    digests: HashMap<Digest, Number, RandomState>,
}

impl Shelf {
    /// How widely a body is known. Costs its hash and a comparison, no lock, if this worker has seen it before.
    pub fn body(&mut self, scripts: &Scripts, body: &[u8]) -> Known {
        if self.generation != scripts.generation() {
            self.bodies.clear();
            self.generation = scripts.generation();
        }
        if let Some(number) = self.bodies.get(body) {
            return scripts.widely(*number);
        }
        if body.len() > BODY_BYTES_MAX {
            return Known::Ignored;
        }
        match scripts.number_of(body) {
            Ok((number, body)) => {
                self.bodies.insert(body, number);
                scripts.widely(number)
            }
            Err(known) => known,
        }
    }

    /// How widely the script with this digest is known.
    pub fn digest(&mut self, scripts: &Scripts, digest: &[u8]) -> Known {
        let Ok(mut digest) = Digest::try_from(digest) else {
            return Known::Ignored;
        };
        digest.make_ascii_lowercase();
        if self.digests_of != scripts.digests_version() {
            self.digests_of = scripts.digests_version();
            self.digests = scripts.digests();
        }
        let number = self.digests.get(&digest);
        number.map_or(Known::Ignored, |number| scripts.widely(*number))
    }
}
