//! `firn health`: for container health checks, which have no curl.

use crate::exit::Result;
use crate::flags::HealthArgs;
use crate::output::note;

pub(crate) fn run(args: &HealthArgs) -> Result<()> {
    let client = firn_client::blocking::Client::connect(&args.server)?;
    let stats = client.stats()?;
    note(format_args!("ready: version {}", stats.server_version));
    Ok(())
}
