//! The highest epoch obeyed (rule R10), and what the data of our Redis has been called, on disk.
//!
//! Owns: two small files in the agent's data directory. Refuses: anything else of the agent's state: Redis
//! itself carries the epoch too, for exactly as long as it has memory to protect. Invariant: a file is replaced
//! whole, so a crash leaves what it held or what it was to hold.

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
        replace(&self.path, &format!("{epoch}\n"))
    }
}

/// The file of the replication ids that the data of our Redis has had in its shard.
#[derive(Clone, Debug)]
pub struct StreamsFile {
    path: PathBuf,
}

impl StreamsFile {
    /// The file in `dir`, which exists.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            path: dir.join("streams"),
        }
    }

    /// The ids remembered, the last one last; none if none ever were.
    pub fn read(&self) -> io::Result<Vec<String>> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
        }
    }

    /// Remembers these.
    pub fn write(&self, streams: &[String]) -> io::Result<()> {
        replace(&self.path, &(streams.join("\n") + "\n"))
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
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
        let streams = StreamsFile::in_dir(&dir.path().join("new"));
        assert_eq!(streams.read().unwrap(), Vec::<String>::new());
        streams.write(&["r1".to_owned(), "r2".to_owned()]).unwrap();
        assert_eq!(streams.read().unwrap(), ["r1", "r2"]);
        assert_eq!(file.read().unwrap(), Epoch(7), "a file of its own");
        fs::write(&file.path, "seven").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("holds no epoch"));
    }
}
