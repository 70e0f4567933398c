//! The children's logs: their warnings shown, their last words told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::plan::Part;

/// What is read of one log at a time, in bytes.
const READ_BYTES_MAX: u64 = 64 * 1024;
/// Lines of one log that are shown at a time.
const SHOWN_MAX: usize = 10;
/// The longest line that is shown, in characters.
const LINE_CHARS_MAX: usize = 500;

/// The logs that are watched.
#[derive(Debug, Default)]
pub struct Logs {
    logs: BTreeMap<Part, Log>,
}

#[derive(Debug)]
struct Log {
    name: String,
    path: PathBuf,
    read: u64,
}

impl Logs {
    /// Watches the log of `part` from its beginning.
    pub fn watch(&mut self, part: Part, name: String, path: &Path) {
        let path = path.to_owned();
        self.logs.entry(part).or_insert(Log { name, path, read: 0 });
    }

    /// Shows the new warnings and errors of all logs, each with its child's name.
    pub fn show(&mut self) {
        for (part, log) in &mut self.logs {
            // A log that cannot be read now is read the next time.
            let Ok(text) = log.fresh() else { continue };
            let mut lines = text.lines().filter(|line| worth_showing(*part, line));
            for line in lines.by_ref().take(SHOWN_MAX) {
                let line: String = line.chars().take(LINE_CHARS_MAX).collect();
                // Nobody may be reading any more.
                let _ = writeln!(io::stderr(), "{}: {line}", log.name);
            }
            let more = lines.count();
            if more > 0 {
                let _ = writeln!(
                    io::stderr(),
                    "{}: and {more} more, see {}",
                    log.name,
                    log.path.display()
                );
            }
        }
    }

    /// The last line that `part` wrote.
    pub fn last(&self, part: Part) -> String {
        let Some(log) = self.logs.get(&part) else {
            return String::new();
        };
        let text = fs::read(&log.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("it wrote nothing")
            .trim()
            .chars()
            .take(LINE_CHARS_MAX)
            .collect()
    }
}

impl Log {
    /// What was written since the last time, up to the end of a line.
    fn fresh(&mut self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            // A line longer than that is shown in pieces.
            None if bytes.len() as u64 == READ_BYTES_MAX => bytes.len(),
            None => 0,
        };
        self.read += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).into_owned())
    }
}

/// Our own levels mean what they say. ZooKeeper warns of every client that leaves, and a parked Redis every second that
/// nobody answers it.
fn worth_showing(part: Part, line: &str) -> bool {
    match part {
        Part::Agent(_) | Part::Proxy(_) => line.contains(" WARN ") || line.contains(" ERROR "),
        Part::ZooKeeper(_) => line.contains(" ERROR "),
        Part::Redis(_) => line.contains("BUG REPORT START"),
    }
}
