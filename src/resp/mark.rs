//! The mark on what pointsman asks Redis for itself: its first word begins small and goes on in capitals (`rOLE`).
//!
//! Redis does not care how a command is spelt, and shows it as it was written in MONITOR and SLOWLOG. So what is
//! pointsman's own can be left out of what clients see, whichever agent or proxy asked it. A client that spells a command
//! just so is not shown either.

/// `word` as pointsman spells it. A word of less than two letters cannot carry the mark.
pub fn marked(word: &[u8]) -> Vec<u8> {
    let mut spelt = word.to_ascii_uppercase();
    if let Some(first) = spelt.first_mut() {
        first.make_ascii_lowercase();
    }
    spelt
}

/// What the channels begin with on which pointsman publishes, for the sake of nothing but replication.
pub const OWN_CHANNELS: &[u8] = b"__pointsman:";

/// Whether a command's name carries the mark.
pub fn is_marked(word: &[u8]) -> bool {
    match word {
        [first, second, rest @ ..] => {
            first.is_ascii_lowercase() && second.is_ascii_uppercase() && !rest.iter().any(u8::is_ascii_lowercase)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_the_mark_is_told_from_what_clients_write() {
        for word in ["ROLE", "info", "Client"] {
            assert!(is_marked(&marked(word.as_bytes())), "{word}");
            assert!(!is_marked(word.as_bytes()), "{word}");
        }
        assert_eq!(marked(b"SPUBLISH"), b"sPUBLISH");
        for word in ["", "g", "G", "gET3x", "Get", "georadius_RO"] {
            assert!(!is_marked(word.as_bytes()), "{word}");
        }
    }
}
