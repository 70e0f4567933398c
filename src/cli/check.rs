//! `pointsman check-config FILE`.

use std::path::PathBuf;

use super::Failure;
use crate::config::Document;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config of a proxy or an agent, or a topology.
    file: PathBuf,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let document = Document::read(&args.file)?;
    document.check()?;
    println!("{}: {}, fine", args.file.display(), document.file.kind().phrase());
    Ok(())
}
