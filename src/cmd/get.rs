//! `firn get`: the value of one key.

use std::io::Write;

use crate::exit::{Exit, Failure, Result};
use crate::flags::GetArgs;
use crate::output::{self, Format};
use crate::store::{Access, Store};
use crate::text::escape;

pub(crate) fn run(args: &GetArgs) -> Result<()> {
    let key = super::key_bytes(&args.key, args.keys)?;
    let store = Store::open(&args.store, Access::Read)?;
    let Some(item) = store.get(&key)? else {
        return Err(Failure::new(
            Exit::NotFound,
            format!("no key {}", escape(&key)),
        ));
    };
    let mut out = output::stdout();
    match args.format {
        Format::Raw => {
            out.write_all(&item.value)?;
            // Only so that the prompt of a shell starts on a line of its own.
            if output::stdout_is_terminal() && !item.value.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
        Format::Text => writeln!(out, "{}", escape(&item.value))?,
        Format::Table => {
            let mut table = output::Table::new(&["key", "value", "version", "expires_at_ms"]);
            let expires = item.expires_at_ms.map_or("-".into(), |ms| ms.to_string());
            table.row([
                escape(&key),
                escape(&item.value),
                item.version.to_string(),
                expires,
            ]);
            table.print(&mut out)?;
        }
        Format::Json | Format::Ndjson => {
            let mut line = Vec::new();
            output::push_json(
                &mut line,
                &key,
                Some(&item.value),
                item.version,
                item.expires_at_ms,
            );
            line.push(b'\n');
            out.write_all(&line)?;
        }
    }
    out.flush()?;
    store.close()
}
