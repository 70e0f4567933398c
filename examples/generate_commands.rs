//! Makes `src/command/commands.json` anew from running servers, the newest first:
//!
//! ```text
//! cargo run --example generate_commands 127.0.0.1:7801 127.0.0.1:7802 .. > src/command/commands.json
//! ```
//! The file in the repository comes from redis-server 8.0.2, valkey-server 8.1.1, redis-server 7.0.15 and 6.2.14, in
//! this order. Of a command that several know the first one's description stands, with these exceptions: the number of
//! arguments is the loosest, a command that writes in any version writes. Modules are left out: which ones a server
//! has is learnt at run time. After a change the tests of `src/command` name every command nobody has classed yet.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, bail};
use bytes::Bytes;
use pointsman::command::{Row, RowSpec, looser_arity, refusal, reply};
use redis_protocol::resp2::decode::decode_bytes;

fn main() -> anyhow::Result<()> {
    let mut merged = BTreeMap::new();
    for addr in std::env::args().skip(1) {
        let rows = command(&addr).with_context(|| format!("COMMAND of {addr}"))?;
        for row in rows.into_iter().filter(is_wanted) {
            merge(&mut merged, row);
        }
    }
    describe_stralgo(&mut merged);
    let lines: Result<Vec<_>, _> = merged.values().map(serde_json::to_string).collect();
    println!("[\n{}\n]", lines?.join(",\n"));
    Ok(())
}

fn command(addr: &str) -> anyhow::Result<Vec<Row>> {
    let mut server = TcpStream::connect(addr)?;
    server.write_all(b"COMMAND\r\nQUIT\r\n")?;
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes)?;
    let Some((frame, _)) = decode_bytes(&Bytes::from(bytes))? else {
        bail!("the reply ends too early")
    };
    Ok(reply::rows(&frame)?)
}

fn is_wanted(row: &Row) -> bool {
    !row.flags.iter().any(|flag| flag == "module") && !refusal::is_cross_protocol(row.name.as_bytes())
}

fn merge(merged: &mut BTreeMap<String, Row>, row: Row) {
    // A server that has subcommands describes them one by one; an older one gives all of them one description.
    let prefix = format!("{}|", row.name);
    let has_subcommands = merged
        .range(prefix.clone()..)
        .next()
        .is_some_and(|(name, _)| name.starts_with(&prefix));
    let Some(known) = merged.get_mut(&row.name) else {
        merged.insert(row.name.clone(), row);
        return;
    };
    known.arity = looser_arity(known.arity, row.arity);
    for flag in ["write", "may_replicate"].map(str::to_owned) {
        if !has_subcommands && row.flags.contains(&flag) && !known.flags.contains(&flag) {
            known.flags.push(flag);
        }
    }
}

/// STRALGO (6.2 only) has keys after the word KEYS; servers that have key specifications no longer have STRALGO.
fn describe_stralgo(merged: &mut BTreeMap<String, Row>) {
    if let Some(stralgo) = merged.get_mut("stralgo") {
        stralgo.keys = vec![RowSpec {
            flags: ["RO", "access"].map(str::to_owned).into(),
            keyword: Some(("KEYS".to_owned(), 2)),
            range: Some([1, 1, 0]),
            ..RowSpec::default()
        }];
    }
}
