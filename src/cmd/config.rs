//! `firn config`: what the server would run with.

use std::io::Write;

use crate::exit::Result;
use crate::flags::{ConfigAction, ConfigArgs};
use crate::output;

pub(crate) fn run(args: ConfigArgs) -> Result<()> {
    let config = match args.action {
        ConfigAction::Check { settings } => {
            super::serve::load(&settings)?;
            output::note(format_args!("the configuration is good"));
            return Ok(());
        }
        ConfigAction::Print {
            effective: true,
            settings,
        } => super::serve::load(&settings)?,
        ConfigAction::Print {
            effective: false, ..
        } => firn_server::config::Config::default(),
    };
    let mut out = output::stdout();
    out.write_all(config.to_toml().as_bytes())?;
    out.flush()?;
    Ok(())
}
