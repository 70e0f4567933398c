//! Children that cannot outlive their parent.
//!
//! Owns: the parent-death signal of a child. Refuses: everything else about processes. Invariant: a
//! child started from a command prepared here is killed by the kernel when the *thread* that spawned
//! it ends, however it ends; so spawn only from a thread that lives as long as the children should.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

/// Makes the child that `command` will start die with SIGKILL when the spawning thread ends, and puts
/// it into a process group of its own, so that Ctrl-C in a terminal reaches the parent alone.
///
/// The signal survives `exec` (prctl(2), PR_SET_PDEATHSIG), but is not inherited by grandchildren: the
/// program started must not fork servers of its own.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed.
    // It makes two system calls (prctl, getppid) through thin wrappers that neither allocate nor lock,
    // and its error carries a raw code, which does not allocate either.
    #[allow(
        unsafe_code,
        reason = "the parent-death signal has to be set in the child, before exec"
    )]
    unsafe {
        command.pre_exec(move || arm(parent));
    }
}

/// Runs in the child. Fails when the parent died before the signal was armed.
fn arm(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(nix::libc::ESRCH))
    }
}
