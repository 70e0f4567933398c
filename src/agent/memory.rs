//! The highest epoch obeyed, on disk (rule R10).
//!
//! Owns: one small file in the agent's data directory. Refuses: anything else of the agent's state: Redis
//! itself carries the epoch too, for exactly as long as it has memory to protect. Invariant: the file is replaced
//! whole, so a crash leaves the old number or the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::topology::Epoch;

/// The file's place.
#[derive(Clone, Debug)]
pub struct EpochFile {
    path: PathBuf,
}

impl EpochFile {
    /// The file in `dir`, which is made if it is missing.
    pub fn in_dir(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            path: dir.join("epoch"),
        })
    }

    /// The epoch remembered; 0 if none ever was. A file that holds anything else is an error: forgetting
    /// silently would be worse than not starting.
    pub fn read(&self) -> io::Result<Epoch> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Epoch(0)),
            Err(error) => Err(error),
            Ok(text) => text.trim().parse().map(Epoch).map_err(|_| {
                let sentence = format!("{} holds no epoch number", self.path.display());
                io::Error::new(io::ErrorKind::InvalidData, sentence)
            }),
        }
    }

    /// Remembers `epoch`.
    pub fn write(&self, epoch: Epoch) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, format!("{epoch}\n"))?;
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_survives_and_nonsense_is_not_forgotten_silently() {
        let dir = tempfile::tempdir().unwrap();
        let file = EpochFile::in_dir(&dir.path().join("new")).unwrap();
        assert_eq!(file.read().unwrap(), Epoch(0));
        file.write(Epoch(7)).unwrap();
        assert_eq!(file.read().unwrap(), Epoch(7));
        fs::write(&file.path, "seven").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("holds no epoch"));
    }
}
