//! A process as the kernel shows it: the surest and earliest sign of a Redis' death.
//!
//! Owns: reading `/proc/<pid>/stat` and `/proc/uptime`, and the pidfd. Refuses: signals. Invariant: a pid is believed to be
//! our Redis only if its start time fits the uptime that Redis reported, so neither another host's pid nor a
//! reused one is taken for it.
//!
//! The kernel frees a big heap before it closes sockets and before a pidfd tells of the end (about 88 ms per GB, both), but
//! sets PF_EXITING at once. So a pidfd alone, which costs nothing until the end, is as early as a look at each few
//! milliseconds only for a small process.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// `PF_EXITING` of the kernel's `include/linux/sched.h`.
const PF_EXITING: u64 = 0x4;
/// `USER_HZ`, in which /proc gives start times; 100 on every Linux platform we run on.
const TICKS_PER_SECOND: u64 = 100;
/// By how much start time and reported uptime may differ, in seconds.
const SLACK: u64 = 3;
/// Between two looks at the process.
const POLL: Duration = Duration::from_millis(5);
/// What the kernel frees in the half of [`POLL`] that a look is late on average.
const SMALL_MAX_BYTES: u64 = 24 * 1024 * 1024;
/// The longest line of `stat`: a name of 64 bytes and 51 numbers.
const STAT_MAX_BYTES: usize = 2048;

/// One process, whoever gets its pid after it.
#[derive(Debug)]
pub struct Process {
    /// Its `stat`, held open: the kernel finds this process by it, or none.
    stat: File,
    started: u64,
    /// Readable when it has ended; none where the kernel has no such thing, or refuses it.
    end: Option<AsyncFd<OwnedFd>>,
}

impl Process {
    /// The local process `pid`, if it has been up for `uptime` seconds. To be called within a runtime.
    pub fn find(pid: u32, uptime: u64) -> Option<Self> {
        let file = File::open(format!("/proc/{pid}/stat")).ok()?;
        let stat = Stat::read(&file)?;
        let up: f64 = fs::read_to_string("/proc/uptime")
            .ok()?
            .split(' ')
            .next()?
            .parse()
            .ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "seconds since boot"
        )]
        let age = (up as u64).saturating_sub(stat.started / TICKS_PER_SECOND);
        if age.abs_diff(uptime) > SLACK {
            return None;
        }
        let found = Self {
            stat: file,
            started: stat.started,
            end: end_of(pid),
        };
        // Also: the pidfd is no later process', for this one still is.
        (!found.dead()).then_some(found)
    }

    /// Whether it can never run again: gone, a zombie or exiting.
    pub fn dead(&self) -> bool {
        Stat::read(&self.stat).is_none_or(|stat| stat.gone() || stat.started != self.started)
    }

    /// Waits until it is dead. `resident_bytes`: how much memory it holds, if that is known. May be dropped at any point.
    pub async fn death(&self, resident_bytes: Option<u64>) {
        let small = resident_bytes.is_some_and(|bytes| bytes <= SMALL_MAX_BYTES);
        while !self.dead() {
            match &self.end {
                Some(end) if small => {
                    if end.readable().await.is_ok() {
                        return;
                    }
                    sleep(POLL).await;
                }
                Some(_) | None => sleep(POLL).await,
            }
        }
    }
}

fn end_of(pid: u32) -> Option<AsyncFd<OwnedFd>> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let end = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    #[expect(
        deprecated,
        reason = "sound for an owned descriptor, which stays the same until it is dropped"
    )]
    AsyncFd::with_interest(end, Interest::READABLE).ok()
}

struct Stat {
    state: char,
    flags: u64,
    started: u64,
}

impl Stat {
    fn read(stat: &File) -> Option<Self> {
        let mut text = [0; STAT_MAX_BYTES];
        let length = stat.read_at(&mut text, 0).ok()?;
        Self::parse(std::str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Fields are counted from behind the command name, which may hold spaces and parentheses (proc(5)).
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some(Self {
            state: fields.next()?.chars().next()?,
            flags: fields.nth(5)?.parse().ok()?,
            started: fields.nth(12)?.parse().ok()?,
        })
    }

    fn gone(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') || self.flags & PF_EXITING != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.flags, stat.started), ('S', 4_194_560, 4242));
        assert!(!stat.gone());
        assert!(Stat::parse(&text.replace("4194560", "4194564")).unwrap().gone());
        assert!(Stat::parse(&text.replace(" S ", " Z ")).unwrap().gone());
        assert!(Stat::parse("nonsense").is_none());
    }

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[tokio::test]
    async fn a_pid_with_another_age_is_not_ours() {
        assert!(Process::find(std::process::id(), 1_000_000).is_none());
    }

    #[tokio::test]
    async fn a_death_is_seen_with_and_without_a_pidfd_and_whatever_the_size() {
        for (pidfd, resident) in [
            (true, Some(0)),
            (true, Some(SMALL_MAX_BYTES + 1)),
            (true, None),
            (false, Some(0)),
        ] {
            let mut child = sleeper();
            let mut process = Process::find(child.id(), 0).unwrap();
            assert!(process.end.is_some(), "this kernel has pidfds");
            if !pidfd {
                process.end = None;
            }
            let none = tokio::time::timeout(POLL * 4, process.death(resident)).await;
            assert!(none.is_err() && !process.dead());
            child.kill().unwrap();
            let limit = Duration::from_secs(10);
            // Not reaped yet: a zombie is dead.
            tokio::time::timeout(limit, process.death(resident)).await.unwrap();
            child.wait().unwrap();
            assert!(process.dead(), "and so is one that is gone");
            tokio::time::timeout(limit, process.death(resident)).await.unwrap();
        }
    }
}
