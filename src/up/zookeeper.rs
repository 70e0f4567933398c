//! The config of an ensemble of our own.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::plan::Plan;

/// Sessions end at multiples of a tick; a session timeout has this many.
const TICKS_PER_SESSION: u128 = 10;
/// Ticks are not shorter or longer than this.
const TICK_MS: (u128, u128) = (50, 2000);
/// How long a server may take to copy the leader's data when it joins.
const INIT_MS: u128 = 30_000;
/// How long a follower may be out of touch.
const SYNC_MS: u128 = 5000;

/// Writes `zoo.cfg` (and `myid`, where there are several) of server `index` into `folder`.
pub fn write_config(folder: &Path, plan: &Plan, index: usize, session: Duration) -> io::Result<()> {
    if plan.zookeepers.len() > 1 {
        fs::write(folder.join("myid"), format!("{}\n", index + 1))?;
    }
    fs::write(folder.join("zoo.cfg"), config(folder, plan, index, session))
}

fn config(folder: &Path, plan: &Plan, index: usize, session: Duration) -> String {
    let session = session.as_millis();
    let tick = (session / TICKS_PER_SESSION).clamp(TICK_MS.0, TICK_MS.1);
    let mut text = format!(
        "dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\ntickTime={tick}\ninitLimit={}\nsyncLimit={}\n\
         minSessionTimeout={}\nmaxSessionTimeout={}\nmaxClientCnxns=0\nadmin.enableServer=false\n\
         4lw.commands.whitelist=srvr\n",
        folder.display(),
        plan.zookeepers[index].port,
        INIT_MS.div_ceil(tick),
        SYNC_MS.div_ceil(tick),
        session.min(2 * tick),
        session.max(20 * tick),
    );
    if plan.zookeepers.len() > 1 {
        for (number, member) in (1..).zip(&plan.zookeepers) {
            let (quorum, election) = (member.quorum_port, member.election_port);
            // Writing to a String does not fail.
            let _ = writeln!(text, "server.{number}=127.0.0.1:{quorum}:{election}");
        }
    }
    text
}
