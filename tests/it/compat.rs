//! A part of the suites of `tests/compat`: what passes directly passes through pointsman. `make compat` runs all of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::run_within;

/// What the script ends with where apt or PyPI cannot be reached.
const UNREACHABLE: i32 = 77;
/// Half a minute on a machine of its own, with everything in the cache.
const LIMIT: Duration = Duration::from_secs(420);

#[test]
fn every_known_difference_is_in_the_documentation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let (known, told) = (read("tests/compat/known.tsv"), read("docs/compatibility.md"));
    for line in known.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [_, test, _, reason] = columns[..] else {
            panic!("not suite, test, how, reason: {line}");
        };
        assert!(told.contains(test), "{test} is not named");
        assert!(!reason.is_empty(), "{test} has no reason");
    }
}

#[test]
fn a_part_of_redis_own_suite_and_of_a_clients_gives_what_it_gives_directly() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command
        .arg(root.join("tests/compat/compat.py"))
        .args(["--fast", "--pointsman", env!("CARGO_BIN_EXE_pointsman"), "--cache"])
        .arg(root.join("target/compat"));
    let output = run_within(LIMIT, command);
    let said = output.stdout + &output.stderr;
    if output.code == Some(UNREACHABLE) {
        println!("skipped, because the suites are not to be had from here: {said}");
        return;
    }
    assert_eq!(output.code, Some(0), "{said}");
}
