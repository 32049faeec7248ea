//! `firn put`: a value under a key, perhaps on a condition, perhaps for a time.

use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use firn_engine::options::MAX_VALUE_BYTES;

use crate::exit::Result;
use crate::flags::PutArgs;
use crate::store::{Access, Batch, Expiry, Op, Require, Store};
use crate::{host, output};

pub(crate) fn run(args: PutArgs) -> Result<()> {
    let key = super::key_bytes(&args.key, args.keys)?;
    let value = match (args.file, args.value) {
        (Some(file), _) => host::read_input(&file, MAX_VALUE_BYTES)?,
        (None, Some(value)) if value != "-" => value.into_vec(),
        (None, _) => host::read_input(Path::new("-"), MAX_VALUE_BYTES)?,
    };
    let require = if args.if_absent {
        Some(Require::Absent)
    } else if args.if_exists {
        Some(Require::Exists)
    } else {
        args.if_version.map(Require::Version)
    };
    let batch = Batch {
        requires: require
            .map(|require| (key.clone(), require))
            .into_iter()
            .collect(),
        ops: vec![Op::Put {
            key,
            value,
            expiry: args.ttl.map(Expiry::After),
        }],
    };
    let store = Store::open(&args.store, Access::Create)?;
    let version = store.write(batch, args.durability.durability)?;
    if args.print_version {
        let mut out = output::stdout();
        writeln!(out, "{version}")?;
        out.flush()?;
    }
    store.close()
}
