//! The source tree itself: who may import whom, and how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Ground floor first: a house imports only from those before it.
const HOUSES: [&str; 16] = [
    "clock",
    "telemetry",
    "resp",
    "command",
    "topology",
    "config",
    "route",
    "store",
    "peer",
    "proxy",
    "agent",
    "operate",
    "admin",
    "up",
    "cli",
    "main",
];
const LINES_MAX: usize = 600;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .collect()
}

fn floor(house: &str) -> usize {
    HOUSES
        .iter()
        .position(|known| *known == house)
        .unwrap_or_else(|| panic!("'{house}' is no house: give it a floor here"))
}

#[test]
fn houses_import_only_from_the_floors_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let inside = path.strip_prefix(&root).unwrap();
        let house = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if house == "lib" {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let Some(rest) = line.trim_start().strip_prefix("use crate::") else {
                continue;
            };
            let other = rest.split([':', ';', '{']).next().unwrap();
            let together = other == house;
            let apart = matches!((house, other), ("agent", "proxy") | ("proxy", "agent"));
            assert!(
                together || (floor(other) < floor(house) && !apart),
                "{}: {line}",
                inside.display()
            );
        }
    }
}

#[test]
fn files_are_a_few_screens_long() {
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}
