//! Proof that both ends know the cluster's secret, without sending it.
//!
//! Owns: nonces and HMAC-SHA256 proofs. Invariant: a proof names its direction and both nonces, so neither a
//! recorded one nor one reflected from the other direction is accepted.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Which end proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent whose port it is.
    Server,
    /// Who connected.
    Client,
}

/// The nonces of one connection.
#[derive(Clone, Debug)]
pub struct Nonces {
    /// Drawn by the client.
    pub client: Vec<u8>,
    /// Drawn by the server.
    pub server: Vec<u8>,
}

/// 32 hex digits nobody can guess; none if the system has no randomness to give.
pub fn nonce() -> Option<Vec<u8>> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    Some(
        random
            .iter()
            .flat_map(|byte| format!("{byte:02x}").into_bytes())
            .collect(),
    )
}

/// The proof of one end, in hex.
pub fn prove(secret: &[u8], end: End, nonces: &Nonces) -> Vec<u8> {
    let bytes = mac(secret, end, nonces).finalize().into_bytes();
    bytes
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect()
}

/// Whether a proof is that of `end`; takes the same time whatever the proof.
pub fn proven(secret: &[u8], end: End, nonces: &Nonces, proof: &[u8]) -> bool {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let raw: Option<Vec<u8>> = proof
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        })
        .collect();
    raw.is_some_and(|raw| mac(secret, end, nonces).verify_slice(&raw).is_ok())
}

fn mac(secret: &[u8], end: End, nonces: &Nonces) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        unreachable!("HMAC takes keys of any length");
    };
    let direction: &[u8] = match end {
        End::Server => b"server",
        End::Client => b"client",
    };
    for part in [
        b"pointsman peer 1".as_slice(),
        direction,
        &nonces.client,
        &nonces.server,
    ] {
        // Lengths before the parts: no two different lists of parts look the same.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_bound_to_secret_direction_and_nonces() {
        let nonces = Nonces {
            client: b"c".to_vec(),
            server: b"s".to_vec(),
        };
        let swapped = Nonces {
            client: b"s".to_vec(),
            server: b"c".to_vec(),
        };
        let proof = prove(b"secret", End::Client, &nonces);
        assert!(proven(b"secret", End::Client, &nonces, &proof));
        assert!(!proven(b"other", End::Client, &nonces, &proof));
        assert!(!proven(b"secret", End::Server, &nonces, &proof));
        assert!(!proven(b"secret", End::Client, &swapped, &proof));
        for nonsense in [b"".as_slice(), b"zz", b"abc", &proof[1..]] {
            assert!(!proven(b"secret", End::Client, &nonces, nonsense));
        }
    }
}
