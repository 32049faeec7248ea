//! `firn export`: a range as a stream that `firn import` restores byte for byte. It is of one
//! instant, from files as from a server.

use std::io::Write;

use crate::dump;
use crate::exit::Result;
use crate::flags::{ExportArgs, ExportFormat};
use crate::host;
use crate::output::{self, push_json};
use crate::progress::Progress;
use crate::store::{Access, Range, Store};

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let range = Range {
        one_instant: true,
        ..super::range_of(&args.range, args.keys)?
    };
    let store = Store::open(&args.store, Access::Read)?;
    let mut progress = Progress::new("export", None);
    match &args.output {
        Some(path) => {
            host::create_output(path, |out| {
                write(&store, &range, args.format, out, &mut progress)
            })?;
        }
        None => {
            let mut out = output::stdout();
            write(&store, &range, args.format, &mut out, &mut progress)?;
            out.flush()?;
        }
    }
    progress.finish();
    output::note(format_args!("exported {}", progress.rates()));
    store.close()
}

fn write(
    store: &Store,
    range: &Range,
    format: ExportFormat,
    out: &mut dyn Write,
    progress: &mut Progress,
) -> Result<()> {
    match format {
        ExportFormat::Dump => {
            let mut writer = dump::Writer::new(out)?;
            store.scan(range, &mut |key, value, _, expires| {
                writer.entry(key, value, expires)?;
                progress.advance(1, (key.len() + value.len()) as u64, 0);
                Ok(true)
            })?;
            writer.finish()
        }
        ExportFormat::Ndjson => {
            let mut line = Vec::new();
            store.scan(range, &mut |key, value, version, expires| {
                line.clear();
                push_json(&mut line, key, Some(value), version, expires);
                line.push(b'\n');
                out.write_all(&line)?;
                progress.advance(1, (key.len() + value.len()) as u64, 0);
                Ok(true)
            })?;
            writeln!(out, "{{\"end\":true,\"count\":{}}}", progress.entries)?;
            Ok(())
        }
    }
}
