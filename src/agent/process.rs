//! A process as /proc shows it: the surest and earliest sign of a Redis' death.
//!
//! Owns: reading `/proc/<pid>/stat` and `/proc/uptime`. Refuses: signals. Invariant: a pid is believed to be
//! our Redis only if its start time fits the uptime that Redis reported, so neither another host's pid nor a
//! reused one is taken for it.
//!
//! The kernel frees a big heap before it closes sockets (about 88 ms per GB), but sets PF_EXITING at once.

use std::fs;

/// `PF_EXITING` of the kernel's `include/linux/sched.h`.
const PF_EXITING: u64 = 0x4;
/// `USER_HZ`, in which /proc gives start times; 100 on every Linux platform we run on.
const TICKS_PER_SECOND: u64 = 100;
/// By how much start time and reported uptime may differ, in seconds.
const SLACK: u64 = 3;

/// One process, by pid and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    /// The local process `pid`, if it has been up for `uptime` seconds.
    pub fn find(pid: u32, uptime: u64) -> Option<Self> {
        let stat = Stat::read(pid)?;
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
        let found = Self {
            pid,
            started: stat.started,
        };
        (age.abs_diff(uptime) <= SLACK && !stat.gone()).then_some(found)
    }

    /// Whether it can never run again: gone, a zombie, exiting, or its pid is another's by now.
    pub fn dead(&self) -> bool {
        Stat::read(self.pid).is_none_or(|stat| stat.gone() || stat.started != self.started)
    }
}

struct Stat {
    state: char,
    flags: u64,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
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

    #[test]
    fn a_pid_with_another_age_is_not_ours() {
        assert_eq!(Process::find(std::process::id(), 1_000_000), None);
    }
}
