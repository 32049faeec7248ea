//! `firn batch`: operations from a file, all or nothing.

use std::io::{BufRead, Write};
use std::time::Duration;

use firn_api::http::{BatchOp, Ttl, bytes_member};

use crate::exit::{Failure, Result};
use crate::flags::BatchArgs;
use crate::store::{Access, Batch, Expiry, Op, Range, Require, Store};
use crate::text::json_error;
use crate::{host, output};

pub(crate) fn run(args: &BatchArgs) -> Result<()> {
    let mut input = host::open_input(&args.file)?;
    let mut parsed = Vec::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |detail: String| Failure::usage(format!("line {number}: {detail}"));
        let op: BatchOp = serde_json::from_slice(&line).map_err(|e| wrong(json_error(&e)))?;
        if op.ns.is_some() {
            return Err(wrong("one namespace a batch: name it with --ns".into()));
        }
        parsed.push(parse(op).map_err(wrong)?);
    }
    if args.dry_run {
        output::note(format_args!("{} operations, nothing written", parsed.len()));
        return Ok(());
    }
    let store = Store::open(&args.store, Access::Create)?;
    let mut batch = Batch::default();
    for Parsed { require, op, range } in parsed {
        batch.requires.extend(require);
        batch.ops.extend(op);
        if let Some(range) = range
            && let Some(end) = store.end_of(&range)?
        {
            batch.ops.push(Op::DeleteRange {
                start: range.start,
                end,
            });
        }
    }
    if batch.ops.is_empty() && batch.requires.is_empty() {
        return store.close();
    }
    let version = store.write(batch, args.durability.durability)?;
    if args.print_version {
        let mut out = output::stdout();
        writeln!(out, "{version}")?;
        out.flush()?;
    }
    store.close()
}

/// One line. A range without an end waits for the store, which knows the last key.
struct Parsed {
    require: Option<(Vec<u8>, Require)>,
    op: Option<Op>,
    range: Option<Range>,
}

fn parse(op: BatchOp) -> std::result::Result<Parsed, String> {
    let key = bytes_member("key", op.key.as_deref(), op.key_b64.as_deref())?;
    let value = bytes_member("value", op.value.as_deref(), op.value_b64.as_deref())?;
    let start = bytes_member("start", op.start.as_deref(), op.start_b64.as_deref())?;
    let end = bytes_member("end", op.end.as_deref(), op.end_b64.as_deref())?;
    let prefix = bytes_member("prefix", op.prefix.as_deref(), op.prefix_b64.as_deref())?;
    let conditions = [
        op.if_absent.then_some(Require::Absent),
        op.if_exists.then_some(Require::Exists),
        op.if_version.map(Require::Version),
    ];
    let mut conditions = conditions.into_iter().flatten();
    let condition = conditions.next();
    if conditions.next().is_some() {
        return Err("if_absent, if_exists and if_version exclude each other".into());
    }
    if op.op == "delete_range" {
        if key.is_some() || condition.is_some() {
            return Err("delete_range takes start, end or prefix, and no condition".into());
        }
        let range = match prefix {
            Some(_) if start.is_some() || end.is_some() => {
                return Err("prefix excludes start and end".into());
            }
            Some(prefix) => {
                let end = firn_engine::key::prefix_end(&prefix);
                Range {
                    start: prefix,
                    end,
                    ..Range::default()
                }
            }
            None => Range {
                start: start.unwrap_or_default(),
                end,
                ..Range::default()
            },
        };
        return Ok(Parsed {
            require: None,
            op: None,
            range: Some(range),
        });
    }
    let key = key.ok_or("key is missing")?;
    let require = condition.map(|condition| (key.clone(), condition));
    let expiry = match (op.ttl, op.expires_at_ms) {
        (Some(_), Some(_)) => return Err("ttl and expires_at_ms exclude each other".into()),
        (Some(Ttl::Seconds(s)), None) => Some(Expiry::After(Duration::from_secs(s))),
        (Some(Ttl::Text(text)), None) => Some(Expiry::After(firn_api::duration::parse(&text)?)),
        (None, at) => at.map(Expiry::AtMs),
    };
    if expiry == Some(Expiry::After(Duration::ZERO)) {
        return Err("ttl must be more than 0".into());
    }
    let op = match op.op.as_str() {
        "put" => {
            let value = value.ok_or("value is missing")?;
            Some(Op::Put { key, value, expiry })
        }
        "delete" => Some(Op::Delete { key }),
        "check" if require.is_none() => return Err("check wants a condition".into()),
        "check" => None,
        other => {
            return Err(format!(
                "unknown op {other:?}: put, delete, delete_range, check"
            ));
        }
    };
    Ok(Parsed {
        require,
        op,
        range: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> std::result::Result<Parsed, String> {
        parse(serde_json::from_str(line).map_err(|e| e.to_string())?)
    }

    #[test]
    fn good_lines() {
        let put = read(r#"{"op":"put","key":"a","value_b64":"/w==","if_version":3}"#).unwrap();
        assert_eq!(put.require, Some((b"a".to_vec(), Require::Version(3))));
        let value = vec![0xff];
        assert_eq!(
            put.op,
            Some(Op::Put {
                key: b"a".to_vec(),
                value,
                expiry: None
            })
        );
        let range = read(r#"{"op":"delete_range","prefix":"p"}"#)
            .unwrap()
            .range
            .unwrap();
        assert_eq!(
            (range.start, range.end),
            (b"p".to_vec(), Some(b"q".to_vec()))
        );
        assert!(
            read(r#"{"op":"check","key":"a","if_absent":true}"#)
                .unwrap()
                .op
                .is_none()
        );
    }

    #[test]
    fn bad_lines() {
        for line in [
            r#"{"op":"put","key":"a"}"#,
            r#"{"op":"put","value":"a"}"#,
            r#"{"op":"steal","key":"a"}"#,
            r#"{"op":"check","key":"a"}"#,
            r#"{"op":"delete","key":"a","key_b64":"YQ=="}"#,
            r#"{"op":"delete","key_b64":"?"}"#,
            r#"{"op":"delete","key":"a","if_absent":true,"if_version":1}"#,
            r#"{"op":"delete_range","prefix":"a","end":"b"}"#,
            r#"{"op":"put","key":"a","value":"b","ttl":"soon"}"#,
            r#"{"op":"put","kee":"a","value":"b"}"#,
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
