//! `firn checkpoint`: a consistent copy, by hard links where possible.

use std::io::Write;
use std::path::Path;

use crate::exit::Result;
use crate::flags::CheckpointArgs;
use crate::store::{self, Access};
use crate::{host, output};

pub(crate) fn run(args: &CheckpointArgs) -> Result<()> {
    let path = match &args.data_dir {
        Some(dir) => {
            let dir = store::existing_dir(dir)?;
            let target = host::absolute(Path::new(&args.target));
            let db = store::open_db(&dir, None, Access::Write)?;
            db.checkpoint(&target)?;
            db.close()?;
            target.display().to_string()
        }
        None => {
            let server = args.server.as_deref().unwrap_or(store::DEFAULT_SERVER);
            let client = firn_client::blocking::Client::connect(server)?;
            client.checkpoint(Some(&args.target))?
        }
    };
    let mut out = output::stdout();
    writeln!(out, "{path}")?;
    out.flush()?;
    Ok(())
}
