//! `firn serve`: settings to configuration, then the server's own main.

use crate::exit::Result;
use crate::flags::{ServeArgs, SettingArgs};
use crate::host;

pub(crate) fn run(args: ServeArgs) -> Result<()> {
    let config = load(&args.settings)?;
    Ok(firn_server::serve::main(config)?)
}

/// File < environment < flags.
pub(crate) fn load(settings: &SettingArgs) -> Result<firn_server::config::Config> {
    let file = settings.config.as_deref();
    let config = firn_server::config::load(file, host::environment(), &settings.flags)?;
    config.validate()?;
    Ok(config)
}
