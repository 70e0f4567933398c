//! CLIENT PAUSE and UNPAUSE, and how a session waits for the end of one.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::session::{Park, Session};
use crate::clock;
use crate::command::Command;
use crate::proxy::pause::Extent;
use crate::resp::{Args, parse_i64};

impl Session {
    pub(super) fn client_pause(self: &Rc<Self>, args: &Args) -> Outcome {
        let extent = match args.get(3).map(<[u8]>::to_ascii_lowercase).as_deref() {
            None | Some(b"all") => Extent::All,
            Some(b"write") => Extent::Writes,
            Some(_) => return self.refuse_line(b"-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n"),
        };
        let now_ms = clock::monotonic_ms();
        let until_ms = match args.get(2).and_then(parse_i64).map(u64::try_from) {
            None => return self.refuse_line(b"-ERR timeout is not an integer or out of range\r\n"),
            Some(Err(_)) => return self.refuse_line(b"-ERR timeout is negative\r\n"),
            // Half of the numbers there are is for ever.
            Some(Ok(timeout_ms)) => now_ms.saturating_add(timeout_ms).min(u64::MAX >> 2),
        };
        self.worker.pause().until(until_ms, extent, now_ms);
        self.refuse_line(b"+OK\r\n")
    }

    pub(super) fn client_unpause(self: &Rc<Self>) -> Outcome {
        self.worker.pause().end();
        self.refuse_line(b"+OK\r\n")
    }

    fn refuse_line(self: &Rc<Self>, line: &[u8]) -> Outcome {
        self.refuse(|out| out.extend_from_slice(line))
    }

    /// Whether a request has to wait for the end of a pause. EXEC is what was queued for it.
    #[inline]
    pub(super) fn is_paused(&self, command: &Command, queued_writes: bool) -> bool {
        let pause = self.worker.pause();
        pause.is_set() && {
            let writes = command.is_write() || (queued_writes && &*command.name == "exec");
            pause.left(writes, clock::monotonic_ms()).is_some()
        }
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
