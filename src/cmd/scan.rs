//! `firn scan`: the entries of a range in order, in any format.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use crate::exit::Result;
use crate::flags::ScanArgs;
use crate::output::{self, Format, push_json};
use crate::store::{Access, Range, Store};
use crate::text::{escape, unescape};

pub(crate) fn run(args: &ScanArgs) -> Result<()> {
    let range = Range {
        reverse: args.reverse,
        keys_only: args.keys_only || args.count,
        limit: args.limit,
        ..super::range_of(&args.range, args.keys)?
    };
    let separator = unescape(
        args.separator
            .as_ref()
            .map_or(b"", |text| OsString::as_os_str(text).as_bytes()),
    )?;
    let store = Store::open(&args.store, Access::Read)?;
    let mut out = output::stdout();
    if args.count {
        let mut entries = 0_u64;
        store.scan(&range, &mut |_, _, _, _| {
            entries += 1;
            Ok(true)
        })?;
        writeln!(out, "{entries}")?;
    } else if args.values {
        store.scan(&range, &mut |_, value, _, _| {
            out.write_all(value)?;
            out.write_all(&separator)?;
            Ok(true)
        })?;
    } else {
        print(&store, &range, args.format, &separator, &mut out)?;
    }
    out.flush()?;
    store.close()
}

fn print(
    store: &Store,
    range: &Range,
    format: Format,
    separator: &[u8],
    out: &mut dyn Write,
) -> Result<()> {
    let keys_only = range.keys_only;
    match format {
        Format::Raw => store.scan(range, &mut |key, value, _, _| {
            out.write_all(key)?;
            out.write_all(value)?;
            out.write_all(separator)?;
            Ok(true)
        }),
        Format::Text => store.scan(range, &mut |key, value, _, _| {
            if keys_only {
                writeln!(out, "{}", escape(key))?;
            } else {
                writeln!(out, "{}\t{}", escape(key), escape(value))?;
            }
            Ok(true)
        }),
        Format::Table => {
            // A table is for a person: long values are cut, and the widths need all rows first.
            const WIDEST: usize = 60;
            let mut table = output::Table::new(&["key", "value", "version", "expires_at_ms"]);
            store.scan(range, &mut |key, value, version, expires| {
                let mut shown = escape(value);
                if let Some((at, _)) = shown.char_indices().nth(WIDEST) {
                    shown.truncate(at);
                    shown.push_str("...");
                }
                let expires = expires.map_or("-".into(), |ms| ms.to_string());
                table.row([escape(key), shown, version.to_string(), expires]);
                Ok(true)
            })?;
            Ok(table.print(out)?)
        }
        Format::Json => {
            let mut line = Vec::new();
            let mut first = true;
            out.write_all(b"[")?;
            store.scan(range, &mut |key, value, version, expires| {
                line.clear();
                line.extend_from_slice(if first { b"\n  " } else { b",\n  " });
                first = false;
                push_json(
                    &mut line,
                    key,
                    (!keys_only).then_some(value),
                    version,
                    expires,
                );
                out.write_all(&line)?;
                Ok(true)
            })?;
            Ok(out.write_all(if first { b"]\n" } else { b"\n]\n" })?)
        }
        Format::Ndjson => {
            let mut line = Vec::new();
            let mut entries = 0_u64;
            store.scan(range, &mut |key, value, version, expires| {
                line.clear();
                push_json(
                    &mut line,
                    key,
                    (!keys_only).then_some(value),
                    version,
                    expires,
                );
                line.push(b'\n');
                out.write_all(&line)?;
                entries += 1;
                Ok(true)
            })?;
            Ok(writeln!(out, "{{\"end\":true,\"count\":{entries}}}")?)
        }
    }
}
