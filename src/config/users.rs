//! The file of the clients' users: who may use a proxy that knows them itself.
//!
//! Invariants: what others can read or change is no such file; no password stays in memory, only its SHA-256; how long a
//! check takes tells neither whether there is such a user nor how much of a password is right.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::error::ConfigError;
use super::secret::{read_private, refused};

/// The longest such file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The longest password, in bytes: a longer one is wrong, and not worth being hashed.
const PASSWORD_BYTES_MAX: usize = 4096;

/// The SHA-256 of a password.
type Hash = [u8; 32];

/// Users and what their passwords hash to.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Users {
    passwords: BTreeMap<String, Vec<Hash>>,
}

impl Users {
    /// Reads a file of one user a line: `name:password`, or `name:#` and the SHA-256 of the password in 64 hex digits, as
    /// in the ACLs of Redis. A name may have several lines: each of its passwords is good. Empty lines, and those that
    /// begin with `#`, say nothing.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_private(path, FILE_BYTES_MAX)?;
        Self::parse(&text).map_err(|what| refused(path, what))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut users = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| format!("line {number} {what}");
            let (name, password) = line
                .split_once(':')
                .ok_or_else(|| wrong("is not of the form name:password or name:#HASH"))?;
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong(
                    "has no name before the colon: use letters, digits and signs without blanks",
                ));
            }
            let hash = match password.strip_prefix('#') {
                Some(digits) => hash_of(digits).ok_or_else(|| wrong("has a '#', but not 64 hex digits behind it"))?,
                None if password.is_empty() => return Err(wrong("has no password behind the colon")),
                None if password.len() > PASSWORD_BYTES_MAX => {
                    return Err(format!(
                        "line {number} has a password of more than {PASSWORD_BYTES_MAX} bytes"
                    ));
                }
                None => Sha256::digest(password).into(),
            };
            users.passwords.entry(name.to_owned()).or_default().push(hash);
        }
        if users.passwords.is_empty() {
            return Err("it names no user: nobody could log in".to_owned());
        }
        Ok(users)
    }

    /// Whether there is such a user.
    pub fn has(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.passwords.contains_key(name))
    }

    /// Whether this is a password of this user.
    pub fn verify(&self, name: &[u8], password: &[u8]) -> bool {
        if password.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        let given: Hash = Sha256::digest(password).into();
        let nobody = [Hash::default()];
        let user = std::str::from_utf8(name).ok().and_then(|name| self.passwords.get(name));
        let right = user
            .map_or(&nobody[..], Vec::as_slice)
            .iter()
            .fold(Choice::from(0), |right, known| right | known.ct_eq(&given));
        bool::from(right) && user.is_some()
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.passwords.keys()).finish()
    }
}

fn hash_of(digits: &str) -> Option<Hash> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = Hash::default();
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "secret".
    const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn passwords_and_hashes_are_good_for_their_own_user_only() {
        let text = format!(
            "# who may\n\ndefault:a:b\nalice:#{HASH}\nalice:next\nbob:#{}\n",
            HASH.to_uppercase()
        );
        let users = Users::parse(&text).unwrap();
        for (name, password, good) in [
            ("default", "a:b", true),
            ("alice", "secret", true),
            ("alice", "next", true),
            ("bob", "secret", true),
            ("bob", "next", false),
            ("alice", "a:b", false),
            ("alice", "", false),
            ("alice", HASH, false),
            ("carol", "secret", false),
            ("", "", false),
        ] {
            assert_eq!(
                users.verify(name.as_bytes(), password.as_bytes()),
                good,
                "{name} {password}"
            );
        }
        assert!(!users.verify(b"\xff", b"secret"));
        assert_eq!(format!("{users:?}"), r#"{"alice", "bob", "default"}"#);
    }

    #[test]
    fn passwords_have_a_longest_length() {
        let longest = "x".repeat(PASSWORD_BYTES_MAX);
        let users = Users::parse(&format!("a:{longest}")).unwrap();
        assert!(users.verify(b"a", longest.as_bytes()));
        assert!(!users.verify(b"a", format!("{longest}x").as_bytes()));
        assert!(
            Users::parse(&format!("a:{longest}x"))
                .unwrap_err()
                .contains("more than 4096 bytes")
        );
    }

    #[test]
    fn nonsense_names_its_line() {
        for (text, what) in [
            ("a:b\nc\n", "line 2 is not of the form"),
            (":b", "line 1 has no name"),
            ("a b:c", "line 1 has no name"),
            ("a:", "line 1 has no password"),
            ("a:#12", "line 1 has a '#', but not 64"),
            (&format!("a:#{}é", &HASH[..62]), "line 1 has a '#', but not 64"),
            ("# a:b\n", "names no user"),
            ("", "names no user"),
        ] {
            let said = Users::parse(text).unwrap_err();
            assert!(said.contains(what), "{text:?}: {said}");
        }
    }
}
