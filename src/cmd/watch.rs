//! `firn watch`: changes as they are committed, and where to go on.

use std::io::Write;

use firn_api::http::WatchLine;
use firn_api::text::base64_encode;
use firn_client::{Change, Client, Watch, WatchEvent, WatchOptions};

use crate::exit::{Exit, Failure, Result};
use crate::flags::{WatchArgs, WatchFormat};
use crate::output;
use crate::text::escape;

pub(crate) fn run(args: &WatchArgs) -> Result<()> {
    let range = super::range_of(&args.range, args.keys)?;
    let options = WatchOptions {
        from: args.from,
        start: Some(range.start).filter(|start| !start.is_empty()),
        end: range.end,
        all_namespaces: args.all_namespaces,
        keys_only: args.keys_only,
        patience: args.patience,
        ..WatchOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let client = Client::connect(&args.server)?.namespace(&args.ns);
    let mut watch = client.watch(options);
    let ended = runtime.block_on(print(&mut watch, args));
    if let Some(next) = watch.next_version() {
        output::note(format_args!("go on with --from {next}"));
    }
    ended
}

async fn print(watch: &mut Watch, args: &WatchArgs) -> Result<()> {
    // Locked for each change only: the lock cannot be held while waiting.
    let interrupted = firn_server::serve::termination();
    tokio::pin!(interrupted);
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            biased;
            () = &mut interrupted => return Ok(()),
            event = watch.next() => event?,
        };
        let line = match args.format {
            WatchFormat::Text => text(&event, args.keys_only),
            WatchFormat::Ndjson => json(event, args.keys_only)?,
        };
        let mut out = output::stdout();
        writeln!(out, "{line}")?;
        out.flush()?;
        left -= 1;
    }
    Ok(())
}

fn text(event: &WatchEvent, keys_only: bool) -> String {
    let (version, namespace) = (event.version, &event.namespace);
    match &event.change {
        Change::Put { key, .. } if keys_only => {
            format!("{version}\tput\t{namespace}\t{}", escape(key))
        }
        Change::Put { key, value, .. } => {
            let (key, value) = (escape(key), escape(value));
            format!("{version}\tput\t{namespace}\t{key}\t{value}")
        }
        Change::Delete { key } => format!("{version}\tdelete\t{namespace}\t{}", escape(key)),
        Change::DeleteRange { start, end } => {
            let (start, end) = (escape(start), escape(end));
            format!("{version}\tdelete_range\t{namespace}\t{start}\t{end}")
        }
        // What a newer server may add is shown as well as it can be.
        _ => format!("{version}\tdrop_namespace\t{namespace}"),
    }
}

fn json(event: WatchEvent, keys_only: bool) -> Result<String> {
    let member = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(base64_encode(bytes))),
    };
    let mut line = WatchLine {
        version: Some(event.version),
        commit: Some(event.commit),
        more: event.more,
        ns: Some(event.namespace),
        ..WatchLine::default()
    };
    let op = match event.change {
        Change::Put {
            key,
            value,
            expires_at_ms,
        } => {
            (line.key, line.key_b64) = member(&key);
            if !keys_only {
                (line.value, line.value_b64) = member(&value);
            }
            line.expires_at_ms = expires_at_ms;
            "put"
        }
        Change::Delete { key } => {
            (line.key, line.key_b64) = member(&key);
            "delete"
        }
        Change::DeleteRange { start, end } => {
            (line.start, line.start_b64) = member(&start);
            (line.to, line.to_b64) = member(&end);
            "delete_range"
        }
        _ => "drop_namespace",
    };
    line.op = Some(op.into());
    serde_json::to_string(&line).map_err(|e| Failure::new(Exit::Refused, e.to_string()))
}
