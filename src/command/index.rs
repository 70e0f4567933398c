//! Finds a command by name, in any case, without copying the name: an open-addressed table of (tag, id).
//!
//! A name is folded to lower case in two words, its first and its last eight bytes; with its length and its parent they
//! are the whole name up to 16 bytes, so the usual search compares no strings.
//! Invariant: at most a quarter of the places are taken, so every search meets an empty one and ends.

use super::entry::CommandId;

/// Where the commands are. A subcommand is filed under its parent, so `config|get` is never found as one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    places: Box<[Place]>,
    names: Box<[Folded]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    tag: u32,
    /// Where the name is in `names`.
    name: u16,
    id: CommandId,
}

const EMPTY: Place = Place {
    tag: 0,
    name: u16::MAX,
    id: CommandId(u16::MAX),
};

/// A name in lower case, whole if it is not longer than `WHOLE_BYTES_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Folded {
    head: u64,
    tail: u64,
    /// The parent's id plus one, or 0, above 32 bits of the name's length.
    parent_and_length: u64,
}

const WHOLE_BYTES_MAX: usize = 16;

impl Index {
    /// Files names; where two are equal the first is found.
    pub(super) fn build(names: &[(Option<CommandId>, &[u8], CommandId)]) -> Self {
        let size = (names.len() * 4).next_power_of_two();
        let mut index = Self {
            places: vec![EMPTY; size].into(),
            names: names
                .iter()
                .map(|(parent, name, _)| Folded::of(*parent, name))
                .collect(),
        };
        for (place, (.., id)) in (0..).zip(names) {
            let hash = index.names[usize::from(place)].hash();
            let mut at = index.home(hash);
            while index.places[at].name != EMPTY.name {
                at = (at + 1) & (size - 1);
            }
            index.places[at] = Place {
                tag: tag(hash),
                name: place,
                id: *id,
            };
        }
        index
    }

    /// The first command filed under `name`; `is_named` is asked about names too long to be told apart here.
    #[inline]
    pub(super) fn find(
        &self,
        parent: Option<CommandId>,
        name: &[u8],
        is_named: impl Fn(CommandId) -> bool,
    ) -> Option<CommandId> {
        let folded = Folded::of(parent, name);
        let hash = folded.hash();
        let mut at = self.home(hash);
        loop {
            let place = *self.places.get(at)?;
            if place.name == EMPTY.name {
                return None;
            }
            let same = place.tag == tag(hash) && self.names.get(usize::from(place.name)) == Some(&folded);
            if same && (name.len() <= WHOLE_BYTES_MAX || is_named(place.id)) {
                return Some(place.id);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash as usize) & self.places.len().wrapping_sub(1)
    }
}

impl Folded {
    #[inline]
    fn of(parent: Option<CommandId>, name: &[u8]) -> Self {
        let (head, tail) = ends(name);
        Self {
            head: lower(head),
            tail: lower(tail),
            // An argument's length fits 32 bits (512 MB at most).
            parent_and_length: parent.map_or(0, |id| u64::from(id.0) + 1) << 32 | name.len() as u64,
        }
    }

    #[inline]
    fn hash(&self) -> u64 {
        let left = self.head ^ 0x9e37_79b9_7f4a_7c15;
        let right = self.tail ^ self.parent_and_length.wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ 0xc2b2_ae3d_27d4_eb4f;
        let wide = u128::from(left) * u128::from(right);
        (wide as u64) ^ ((wide >> 64) as u64)
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The first and the last eight bytes, overlapping if there are fewer than 16; shorter names fill up with zeros.
#[inline]
fn ends(name: &[u8]) -> (u64, u64) {
    if let (Some(head), Some(tail)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        return (u64::from_le_bytes(*head), u64::from_le_bytes(*tail));
    }
    if let (Some(head), Some(tail)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        return (u32::from_le_bytes(*head).into(), u32::from_le_bytes(*tail).into());
    }
    let at = |index: usize| u64::from(name.get(index).copied().unwrap_or_default());
    (at(0) | at(1) << 8 | at(2) << 16, 0)
}

/// Eight bytes in lower case: bit 5 is set in those between `A` and `Z`, and in no others.
#[inline]
fn lower(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low_bits = word & (EACH * 0x7f);
    let from_a = low_bits + EACH * (0x80 - b'A' as u64);
    let past_z = low_bits + EACH * (0x7f - b'Z' as u64);
    let upper = (from_a ^ past_z) & !word & (EACH * 0x80);
    word | (upper >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_nothing_else_are_folded() {
        for byte in 0..=u8::MAX {
            let word = u64::from_le_bytes([byte; 8]);
            assert_eq!(
                lower(word),
                u64::from_le_bytes([byte.to_ascii_lowercase(); 8]),
                "{byte}"
            );
        }
    }

    #[test]
    fn names_of_every_length_are_found_and_no_others() {
        let names: Vec<String> = (1..40)
            .map(|length| "abcdefghij".repeat(4)[..length].to_owned())
            .collect();
        let filed: Vec<_> = (0..)
            .map(CommandId)
            .zip(&names)
            .map(|(id, name)| (None, name.as_bytes(), id))
            .collect();
        let index = Index::build(&filed);
        for (id, name) in (0..).map(CommandId).zip(&names) {
            assert_eq!(
                index.find(None, name.to_uppercase().as_bytes(), |found| found == id),
                Some(id)
            );
            assert_eq!(index.find(Some(CommandId(0)), name.as_bytes(), |_| true), None);
            for at in 0..name.len() {
                let mut other = name.clone().into_bytes();
                other[at] ^= 1;
                assert_eq!(index.find(None, &other, |_| false), None);
            }
        }
        assert_eq!(Index::default().find(None, b"a", |_| true), None);
    }
}
