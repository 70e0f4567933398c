//! CLIENT PAUSE and UNPAUSE, and how a session waits for the end of one.

use std::rc::Rc;

use super::session::{Park, Session, State};
use crate::clock;
use crate::command::Command;
use crate::proxy::backend::{ask_for, connect_to, put_own};
use crate::proxy::pause::{Extent, Pause};
use crate::resp::{Args, parse_i64};
use crate::topology::ShardIndex;

/// The longest list of functions that is read, in bytes.
const FUNCTIONS_BYTES_MAX: usize = 4 << 20;

/// What the master says of a function that the session called while clients are paused.
#[derive(Debug)]
pub(super) struct Function {
    pub name: Box<[u8]>,
    /// It does not declare that it writes nothing.
    pub writes: bool,
}

/// What a client wants of the pause.
#[derive(Debug)]
pub(super) enum PauseOrder {
    Pause {
        timeout_ms: u64,
        extent: Extent,
    },
    Unpause,
    /// Something that Redis refuses so.
    Wrong(&'static [u8]),
}

impl PauseOrder {
    /// Does it, and gives the line to say.
    pub(super) fn carry_out(&self, pause: &Pause, now_ms: u64) -> &'static [u8] {
        match self {
            // Half of the numbers there is are for ever.
            Self::Pause { timeout_ms, extent } => {
                let until_ms = now_ms.saturating_add(*timeout_ms).min(u64::MAX >> 2);
                pause.until(until_ms, *extent, now_ms);
            }
            Self::Unpause => pause.end(),
            Self::Wrong(line) => return line,
        }
        b"+OK\r\n"
    }

    /// Reads a CLIENT PAUSE.
    pub(super) fn pause(args: &Args) -> Self {
        let extent = match args.get(3).map(<[u8]>::to_ascii_lowercase).as_deref() {
            None | Some(b"all") => Extent::All,
            Some(b"write") => Extent::Writes,
            Some(_) => return Self::Wrong(b"-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n"),
        };
        match args.get(2).and_then(parse_i64).map(u64::try_from) {
            None => Self::Wrong(b"-ERR timeout is not an integer or out of range\r\n"),
            Some(Err(_)) => Self::Wrong(b"-ERR timeout is negative\r\n"),
            Some(Ok(timeout_ms)) => Self::Pause { timeout_ms, extent },
        }
    }
}

impl Session {
    /// What a request has to wait for while there is a pause. EXEC is what was queued for it.
    #[inline]
    pub(super) fn paused(self: &Rc<Self>, command: &Command, args: &Args, state: &State) -> Option<Park> {
        if !self.worker.pause().is_set() {
            return None;
        }
        let queued_writes = || state.queued().is_some_and(|queued| queued.queued_writes);
        let writes = match &*command.name {
            "exec" => Some(queued_writes()),
            _ => self.may_change(command, args, state),
        };
        match writes {
            Some(writes) => self.is_paused(writes).then_some(Park::Pause),
            None => {
                self.ask_about_function(args.get(1).unwrap_or_default());
                Some(Park::Verify)
            }
        }
    }

    /// Whether what writes, or what does not, has to wait now.
    pub(super) fn is_paused(&self, writes: bool) -> bool {
        self.worker.pause().left(writes, clock::monotonic_ms()).is_some()
    }

    /// Whether a request may change something, as a pause has it: scripts and functions may declare that they do not. `None`:
    /// only the master knows.
    pub(super) fn may_change(&self, command: &Command, args: &Args, state: &State) -> Option<bool> {
        let script = args.get(1).unwrap_or_default();
        match &*command.name {
            "eval" => Some(!declares_no_writes(script)),
            "evalsha" => {
                let body = self.worker.scripts().body_of(script);
                Some(!body.is_some_and(|body| declares_no_writes(&body)))
            }
            "fcall" if self.worker.pause().is_set() => match &state.function {
                Some(known) if *known.name == *script => Some(known.writes),
                Some(_) | None => None,
            },
            _ => Some(command.is_write()),
        }
    }

    /// Has the master say what a function declares. One that cannot be read about may write.
    fn ask_about_function(self: &Rc<Self>, name: &[u8]) {
        let (session, name): (_, Box<[u8]>) = (self.clone(), name.into());
        tokio::task::spawn_local(async move {
            let writes = session.function_writes(&name).await.unwrap_or(true);
            session.state().function = Some(Box::new(Function { name, writes }));
            session.resume();
        });
    }

    async fn function_writes(&self, name: &[u8]) -> Option<bool> {
        let master = self.worker.shard(ShardIndex(0)).serving()?;
        let (login, limit) = (self.state().login.clone(), self.worker.connect_timeout());
        let mut request = Vec::new();
        put_own(&mut request, &[b"FUNCTION", b"LIST"]);
        let asking = async {
            let mut stream = connect_to(&master, &login, limit).await?;
            ask_for(&mut stream, &request, 1, &master.addr, FUNCTIONS_BYTES_MAX).await
        };
        let list = tokio::time::timeout(limit, asking).await.ok()?.ok()?;
        declared_writes(&list, name)
    }

    /// Wakes the session when the pause ends or changes.
    pub(super) fn wait_for_pause(self: &Rc<Self>) {
        let (session, mut changes) = (self.clone(), self.worker.pause().watch());
        let Some(left) = self.worker.pause().left(true, clock::monotonic_ms()) else {
            return self.wake();
        };
        let paused = self.worker.census().pauses();
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = changes.changed() => {}
            }
            drop(paused);
            if session.state().park == Park::Pause {
                session.wake();
            }
        });
    }
}

/// What a FUNCTION LIST says of a function, whose flags are simple strings.
fn declared_writes(list: &[u8], name: &[u8]) -> Option<bool> {
    let lines: Vec<&[u8]> = list
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .collect();
    let at = lines
        .windows(3)
        .position(|lines| lines[0] == b"name" && lines[2] == name)?;
    let mut own = lines[at + 3..]
        .iter()
        .take_while(|line| !matches!(**line, b"name" | b"library_name"))
        .skip_while(|line| **line != b"flags");
    Some(!own.any(|flag| *flag == b"+no-writes"))
}

/// Whether a script's first line says that it writes nothing: `#!lua flags=no-writes`.
fn declares_no_writes(body: &[u8]) -> bool {
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(rest) = line.strip_prefix(b"#!lua") else {
        return false;
    };
    let flags = rest.trim_ascii().strip_prefix(b"flags=").unwrap_or_default();
    flags
        .split(|byte| *byte == b',')
        .any(|flag| flag.trim_ascii() == b"no-writes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_say_in_the_list_that_they_write_nothing() {
        let function = |name: &str, flags: &str| {
            format!("*6\r\n$4\r\nname\r\n$2\r\n{name}\r\n$11\r\ndescription\r\n$-1\r\n$5\r\nflags\r\n{flags}")
        };
        let two = function("f2", "*0\r\n") + &function("f1", "*2\r\n+allow-oom\r\n+no-writes\r\n");
        let list = format!(
            "*1\r\n*6\r\n$12\r\nlibrary_name\r\n$2\r\nf1\r\n$6\r\nengine\r\n$3\r\nLUA\r\n$9\r\nfunctions\r\n*2\r\n{two}"
        );
        let declared = |name: &str| declared_writes(list.as_bytes(), name.as_bytes());
        assert_eq!(
            (declared("f1"), declared("f2"), declared("f3")),
            (Some(false), Some(true), None)
        );
    }

    #[test]
    fn scripts_say_in_their_first_line_that_they_write_nothing() {
        for body in [
            "#!lua flags=no-writes\nreturn 1",
            "#!lua flags=allow-oom,no-writes",
            "#!lua  flags=no-writes \n",
        ] {
            assert!(declares_no_writes(body.as_bytes()), "{body}");
        }
        for body in [
            "",
            "return 1",
            "#!lua\nreturn 1",
            "#!lua flags=\n",
            "#!lua flags=no-writesx",
            "\n#!lua flags=no-writes",
        ] {
            assert!(!declares_no_writes(body.as_bytes()), "{body}");
        }
    }
}
