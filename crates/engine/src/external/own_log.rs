//! The last look at a database's own log before another log takes its place.

use std::path::Path;

use firn_io::Env;
use firn_io::wal::reader::{self, ScanReport};

use crate::batch::BatchReader;
use crate::blob::BlobFile;
use crate::core::{RECORD_BATCH, RECORD_DROP};
use crate::error::{Error, Result};
use crate::feed::DropRecord;
use crate::key::{NamespaceId, SeqNo};
use crate::tree::TableSlot;
use crate::version::set::VersionSet;

/// Reads the database's own log, which must have nothing that the manifest and the SSTables lack:
/// from now on it is not asked any more.
pub fn check(
    env: &Env,
    dir: &Path,
    versions: &VersionSet<TableSlot, BlobFile>,
) -> Result<ScanReport> {
    if !env.fs.exists(dir)? {
        return Ok(ScanReport::default());
    }
    let namespaces = versions.namespaces();
    let is_flushed = |id: NamespaceId, seqno: SeqNo| {
        let exists = namespaces.iter().any(|(other, _)| *other == id);
        !exists || seqno <= versions.flushed_seqno(id)
    };
    let unflushed = || {
        let detail = "its own log has writes that are in no SSTable: open and close it as a \
                      database of its own first";
        Err(Error::InvalidArgument(detail.into()))
    };
    reader::scan(&*env.fs, dir, versions.log_start(), |record| {
        let damaged =
            |detail: &str| Error::corruption(dir, record.start.0, format!("log record: {detail}"));
        match record.kind {
            RECORD_BATCH => {
                let batch = BatchReader::new(record.payload).map_err(damaged)?;
                let mut seqno = batch.base;
                for operation in batch.operations() {
                    let id = operation.map_err(damaged)?.namespace;
                    if !is_flushed(id, seqno) {
                        return unflushed();
                    }
                    seqno.0 += 1;
                }
                Ok(())
            }
            RECORD_DROP => {
                let drop = DropRecord::decode(record.payload).map_err(damaged)?;
                let exists = namespaces.iter().any(|(id, _)| *id == drop.namespace);
                if exists { unflushed() } else { Ok(()) }
            }
            kind => Err(Error::UnsupportedFormat(format!(
                "log record of kind {kind} in {}",
                dir.display()
            ))),
        }
    })
}
