//! `firn del`: keys, or a range of keys.

use crate::exit::Result;
use crate::flags::DelArgs;
use crate::output::note;
use crate::store::{Access, Batch, Op, Range, Store};
use crate::text::{count, escape};

pub(crate) fn run(args: &DelArgs) -> Result<()> {
    if args.targets.is_empty() {
        return delete_range(args);
    }
    let mut ops = Vec::new();
    for key in &args.targets {
        ops.push(Op::Delete {
            key: super::key_bytes(key, args.keys)?,
        });
    }
    if args.dry_run {
        let store = Store::open(&args.store, Access::Read)?;
        for op in &ops {
            let Op::Delete { key } = op else { continue };
            let state = if store.get(key)?.is_some() {
                "would go"
            } else {
                "is not there"
            };
            note(format_args!("{} {state}", escape(key)));
        }
        return store.close();
    }
    let store = Store::open(&args.store, Access::Write)?;
    store.write(
        Batch {
            requires: Vec::new(),
            ops,
        },
        args.durability.durability,
    )?;
    store.close()
}

fn delete_range(args: &DelArgs) -> Result<()> {
    let range = super::range_of(&args.range, args.keys)?;
    if args.dry_run {
        let store = Store::open(&args.store, Access::Read)?;
        let mut keys = 0;
        store.scan(
            &Range {
                keys_only: true,
                ..range
            },
            &mut |_, _, _, _| {
                keys += 1;
                Ok(true)
            },
        )?;
        note(format_args!("{} keys would go", count(keys)));
        return store.close();
    }
    let to = range.end.as_deref().map_or("the last key".into(), |end| {
        format!("before {}", escape(end))
    });
    let what = format!(
        "this deletes every key from \"{}\" to {to}",
        escape(&range.start)
    );
    super::confirm(args.yes, &what)?;
    let store = Store::open(&args.store, Access::Write)?;
    if let Some(end) = store.end_of(&range)? {
        let ops = vec![Op::DeleteRange {
            start: range.start,
            end,
        }];
        store.write(
            Batch {
                requires: Vec::new(),
                ops,
            },
            args.durability.durability,
        )?;
    }
    store.close()
}
