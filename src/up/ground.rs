//! What has to be there before anything is started, and how to get what is not.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::UpError;
use super::settings::Settings;

/// ZooKeeper and what it logs with, as Debian packages them.
pub const JARS: [&str; 2] = ["/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-simple.jar"];
/// The oldest Redis with the ACL commands that fences need.
const REDIS_OLDEST: Version = Version(6, 2);

/// Major and minor version of a redis-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// Which redis-server.
    pub redis: Version,
}

/// Looks for everything that `settings` need. Starts nothing that stays.
pub fn check(settings: &Settings) -> Result<Ground, UpError> {
    if settings.zookeeper.is_none() {
        check_zookeeper()?;
    }
    let redis = check_redis()?;
    let listen = &settings.listen;
    TcpListener::bind((listen.host(), listen.port())).map_err(|error| UpError::PortTaken(listen.clone(), error))?;
    Ok(Ground { redis })
}

fn check_zookeeper() -> Result<(), UpError> {
    let instead = "or name a ZooKeeper that runs already with --zookeeper HOST:PORT";
    if find("java").is_none() {
        return Err(UpError::Missing {
            what: "java is missing, which ZooKeeper needs".to_owned(),
            remedy: format!("install it with 'apt-get install default-jre-headless', {instead}"),
        });
    }
    match JARS.iter().find(|jar| !Path::new(jar).exists()) {
        None => Ok(()),
        Some(jar) => Err(UpError::Missing {
            what: format!("ZooKeeper is missing ({jar})"),
            remedy: format!("install it with 'apt-get install zookeeper libslf4j-java', {instead}"),
        }),
    }
}

fn check_redis() -> Result<Version, UpError> {
    let remedy = || "install Redis 6.2 or later, on Debian with 'apt-get install redis-server'".to_owned();
    let missing = |what: String| UpError::Missing { what, remedy: remedy() };
    let Some(program) = find("redis-server") else {
        return Err(missing("redis-server is missing".to_owned()));
    };
    let output = Command::new(&program).arg("--version").output();
    let output = output.map_err(|error| missing(format!("redis-server cannot be run ({error})")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(found) if found >= REDIS_OLDEST => Ok(found),
        Some(Version(major, minor)) => Err(missing(format!(
            "redis-server is version {major}.{minor}, which is too old"
        ))),
        None => Err(missing(format!(
            "redis-server does not tell its version ('{}')",
            text.trim()
        ))),
    }
}

/// The version in `Redis server v=7.0.15 sha=...` or `Valkey server v=8.1.1 ...`.
fn version(text: &str) -> Option<Version> {
    let numbers = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    let mut parts = numbers.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some(Version(major, minor)),
        _ => None,
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let found = version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64");
        assert_eq!(found, Some(Version(7, 0)));
        assert_eq!(version("Valkey server v=8.1.1 sha=0"), Some(Version(8, 1)));
        assert!(version("v=6.0.16").unwrap() < REDIS_OLDEST && version("v=6.2.0").unwrap() >= REDIS_OLDEST);
        assert_eq!(version("v=x.y"), None);
        assert_eq!(version(""), None);
    }
}
