//! DIR: who may use it, what is cleared away before, what is removed after.
//!
//! Owns: the lock, the secrets, the clearing. Refuses: removing what it did not make. Invariant: one `up` at a time holds
//! DIR's lock; a DIR made by an `up` that was killed is still known as made by one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::error::UpError;
use super::plan::{Part, Plan};
use crate::operate::{AUTH_FILE, SECRET_FILE, SOCKET_FILE, UP_FILE};

/// Held as long as an `up` runs in the folder.
const LOCK_FILE: &str = "lock";
/// Stands in the lock's file if an `up` made the folder.
const MADE: &str = "made by pointsman up\n";

/// The folder, locked.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    made: bool,
    _lock: Flock<File>,
}

impl Folder {
    /// Makes the folder if it is missing, and locks it.
    pub fn take(path: &Path) -> Result<Self, UpError> {
        let refused = |error| UpError::Folder(path.display().to_string(), error);
        let fresh = !path.exists();
        // What is in there is for its owner: the secret, dumps.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(refused)?;
        let path = path.canonicalize().map_err(refused)?;
        let file = path.join(LOCK_FILE);
        let made = fresh || fs::read_to_string(&file).is_ok_and(|text| text == MADE);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(refused)?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(UpError::Running(path.display().to_string())),
            Err((_, error)) => return Err(refused(error.into())),
        };
        if fresh {
            (&*lock).write_all(MADE.as_bytes()).map_err(refused)?;
        }
        Ok(Self {
            path,
            made,
            _lock: lock,
        })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folders of all parts, and clears away what an earlier `up` left that would mislead this one: its
    /// ensemble's data, its agents' epochs, its logs. What redis-servers saved stays: it is the operator's.
    pub fn prepare(&self, plan: &Plan) -> io::Result<()> {
        for file in [UP_FILE, SOCKET_FILE] {
            remove(&self.path.join(file))?;
        }
        for part in plan.parts() {
            let (folder, log) = plan.place(part);
            let folder = self.path.join(folder);
            if let Part::ZooKeeper(_) = part
                && folder.exists()
            {
                fs::remove_dir_all(&folder)?;
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            remove(&folder.join("epoch"))?;
            remove(&folder.join(log))?;
        }
        self.write_private(SECRET_FILE, &random()?)?;
        remove(&self.path.join(AUTH_FILE))?;
        // In an ensemble of others its znodes outlive this folder: closed, nobody could delete them any more.
        match plan.zookeepers.is_empty() {
            true => Ok(()),
            false => self.write_private(AUTH_FILE, &format!("pointsman:{}", random()?)),
        }
    }

    fn write_private(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.path.join(name);
        remove(&path)?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    }

    /// Leaves the folder: removed if an `up` made it, else with nothing in it that says that one runs.
    pub fn leave(self) -> io::Result<()> {
        if self.made {
            return fs::remove_dir_all(&self.path);
        }
        for file in [UP_FILE, SOCKET_FILE, LOCK_FILE] {
            remove(&self.path.join(file))?;
        }
        Ok(())
    }
}

/// 256 bits in hex.
fn random() -> io::Result<String> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_up_at_a_time_and_only_what_was_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        let folder = Folder::take(&made).unwrap();
        assert!(matches!(Folder::take(&made), Err(UpError::Running(_))));
        // Killed: the lock is gone, the folder stays, and is still ours to remove.
        drop(folder);
        assert!(made.exists());
        Folder::take(&made).unwrap().leave().unwrap();
        assert!(!made.exists());

        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("dump.rdb"), "x").unwrap();
        Folder::take(&theirs).unwrap().leave().unwrap();
        Folder::take(&theirs).unwrap().leave().unwrap();
        let left: Vec<_> = fs::read_dir(&theirs)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["dump.rdb"]);
        assert!(Folder::take(&theirs.join("dump.rdb")).is_err());
    }
}
