//! What the fuzz targets do, done to all that fuzzing has found worth keeping: each file of `fuzz/corpus`, and of
//! `tests/corpus`.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/bodies/mod.rs"]
pub mod bodies;

/// Says which file it is that breaks a promise.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replayed: {}", self.0.display());
        }
    }
}

fn replay(folder: &str, target: fn(&[u8])) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!files.is_empty(), "{folder} is empty");
    for file in files {
        let _named = Named(&file);
        target(&fs::read(&file).unwrap());
    }
}

#[test]
fn requests_are_the_same_however_they_arrive() {
    replay("fuzz/corpus/requests", bodies::requests::run);
    replay("tests/corpus/requests", bodies::requests::run);
}

#[test]
fn replies_are_the_same_however_they_arrive_and_whatever_is_looked_at() {
    replay("fuzz/corpus/replies", bodies::replies::run);
    replay("tests/corpus/replies", bodies::replies::run);
}

#[test]
fn keys_are_arguments_of_their_request() {
    replay("fuzz/corpus/keys", bodies::keys::run);
}

#[test]
fn what_servers_say_of_their_commands_gives_a_sound_table_or_none() {
    replay("fuzz/corpus/commands", bodies::commands::run);
}

#[test]
fn znodes_are_nonsense_or_written_as_they_were_read() {
    replay("fuzz/corpus/znodes", bodies::znodes::run);
}

#[test]
fn frames_of_peers_are_refused_or_understood_the_same_however_they_arrive() {
    replay("fuzz/corpus/peers", bodies::peers::run);
}
