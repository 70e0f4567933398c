//! Transactions that may ride a lane (rule A2): exactly MULTI, commands of the white list, EXEC, whole in the buffer.
//! Everything else would leave the lane changed for others, or not answer as often as it should. Pure.

use super::dispatch::is_for_one_shard;
use crate::command::{Command, Lookup, Table};
use crate::resp::{Args, RequestLimits, RequestScanner, Scan};
use crate::topology::ShardIndex;

/// Longest transaction that rides a lane, in bytes.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// A whole transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Its length in bytes.
    pub bytes: usize,
    /// Its commands, MULTI and EXEC included.
    pub count: u32,
    /// Where it goes; set by whoever knows the slots.
    pub shard: ShardIndex,
    /// Whether it runs scripts.
    pub scripts: bool,
}

/// The transaction at the front of `bytes`, if it may ride a lane. `see` is shown each command inside, with its place,
/// and may object to it.
pub(super) fn whole_block(
    bytes: &[u8],
    table: &Table,
    mut see: impl FnMut(&Command, &Args, u32) -> bool,
) -> Option<Block> {
    let (mut at, mut count, mut scripts, mut spans) = (0, 0, false, Vec::new());
    loop {
        let mut scanner = RequestScanner::default();
        let Ok(Scan::Frame(len)) = scanner.scan(&bytes[at..], &mut spans, &RequestLimits::default()) else {
            return None;
        };
        let args = Args::new(&bytes[at..at + len], &spans);
        at += len;
        count += 1;
        let Lookup::Known(command) = table.lookup(&args) else {
            return None;
        };
        if at > BLOCK_BYTES_MAX || !command.arity_ok(args.len()) {
            return None;
        }
        match &*command.name {
            "multi" if count == 1 => {}
            "exec" if count > 1 => {
                return Some(Block {
                    bytes: at,
                    count,
                    shard: ShardIndex(0),
                    scripts,
                });
            }
            _ if count > 1
                && command.rides_lane(&args)
                && is_for_one_shard(command)
                && see(command, &args, count - 1) =>
            {
                scripts |= command.is_script();
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let bulks: String = words
            .iter()
            .map(|word| format!("${}\r\n{word}\r\n", word.len()))
            .collect();
        format!("*{}\r\n{bulks}", words.len())
    }

    fn count(lines: &[&str]) -> Option<u32> {
        let bytes: String = lines.iter().map(|line| request(line)).collect();
        let block = whole_block(bytes.as_bytes(), Table::builtin(), |_, _, _| true)?;
        let whole: String = lines[..block.count as usize].iter().map(|line| request(line)).collect();
        assert_eq!(block.bytes, whole.len());
        Some(block.count)
    }

    #[test]
    fn only_white_listed_commands_between_multi_and_exec_ride_a_lane() {
        assert_eq!(count(&["MULTI", "SET a 1", "get a", "exec", "GET b"]), Some(4));
        assert_eq!(count(&["MULTI", "EXEC"]), Some(2));
        for inside in [
            "SELECT 3",
            "HELLO 3",
            "AUTH x",
            "RESET",
            "QUIT",
            "DISCARD",
            "DISCARD x",
            "EXEC x",
            "MULTI",
            "WATCH a",
            "SUBSCRIBE c",
            "UNSUBSCRIBE",
            "CLIENT REPLY OFF",
            "CLIENT TRACKING ON",
            "REPLCONF ACK 1",
            "NOSUCH",
            "GET",
            "BLPOP a 0",
            "XREAD BLOCK 0 STREAMS s 0",
        ] {
            assert_eq!(count(&["MULTI", inside, "EXEC"]), None, "{inside}");
        }
        assert_eq!(count(&["MULTI", "SET a 1", "DISCARD"]), None);
        assert_eq!(count(&["MULTI", "SET a 1"]), None);
        assert_eq!(count(&["EXEC"]), None);
    }

    #[test]
    fn a_block_of_more_bytes_than_may_ride_does_not() {
        let of = |len: usize| {
            let set = format!("SET a {}", "x".repeat(len));
            [request("MULTI"), request(&set), request("EXEC")].concat()
        };
        let room = BLOCK_BYTES_MAX - of(10_000).len() + 10_000;
        assert!(whole_block(of(room).as_bytes(), Table::builtin(), |_, _, _| true).is_some());
        assert!(whole_block(of(room + 1).as_bytes(), Table::builtin(), |_, _, _| true).is_none());
    }
}
