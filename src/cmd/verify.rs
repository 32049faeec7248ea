//! `firn verify`: every checksum and invariant of files or of a running server.

use std::io::Write;
use std::path::Path;

use firn_engine::verify::{Problem, VerifyReport, verify_dir};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure, Result};
use crate::flags::VerifyArgs;
use crate::output::{self, ReportFormat};
use crate::progress::Progress;
use crate::{store, text};

pub(crate) fn run(args: &VerifyArgs) -> Result<()> {
    let report = match &args.data_dir {
        Some(dir) => verify_files(&store::existing_dir(dir)?)?,
        None => {
            let server = args.server.as_deref().unwrap_or(store::DEFAULT_SERVER);
            let reply = firn_client::blocking::Client::connect(server)?.verify()?;
            VerifyReport {
                files: reply.files,
                bytes: reply.bytes,
                entries: reply.entries,
                log_operations: reply.log_operations,
                problems: reply
                    .problems
                    .into_iter()
                    .map(|p| Problem {
                        path: p.path.into(),
                        offset: p.offset,
                        detail: p.detail,
                    })
                    .collect(),
                ..VerifyReport::default()
            }
        }
    };
    print(&report, args.format)?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::silent(Exit::Corruption))
    }
}

/// Verifies a directory with a progress line.
pub(crate) fn verify_files(dir: &Path) -> Result<VerifyReport> {
    let env = firn_io::Env::os(1);
    let mut progress = Progress::new("verify", Some(0));
    let report = verify_dir(&env, dir, &mut |now| {
        progress.set(0, now.bytes_done, now.bytes_total);
    });
    progress.finish();
    Ok(report?)
}

/// Prints what was found.
pub(crate) fn print(report: &VerifyReport, format: ReportFormat) -> Result<()> {
    if format == ReportFormat::Json {
        return output::print_json(&json!({
            "clean": report.is_clean(),
            "files": report.files,
            "bytes": report.bytes,
            "entries": report.entries,
            "log_operations": report.log_operations,
            "problems": problems_json(&report.problems),
            "notes": problems_json(&report.notes),
        }));
    }
    let mut out = output::stdout();
    let verdict = if report.is_clean() {
        "clean"
    } else {
        "DAMAGED"
    };
    writeln!(
        out,
        "{verdict}: {} files, {}, {} entries, {} operations in the log, {} problems",
        text::count(report.files),
        text::size(report.bytes),
        text::count(report.entries),
        text::count(report.log_operations),
        report.problems.len()
    )?;
    print_problems(&report.problems, &mut out)?;
    print_notes(&report.notes, &mut out)?;
    out.flush()?;
    Ok(())
}

/// One line a problem.
pub(crate) fn print_problems(problems: &[Problem], out: &mut dyn Write) -> Result<()> {
    for problem in problems {
        writeln!(out, "  {problem}")?;
    }
    Ok(())
}

/// What is no problem and yet worth a look.
pub(crate) fn print_notes(notes: &[Problem], out: &mut dyn Write) -> Result<()> {
    if notes.is_empty() {
        return Ok(());
    }
    writeln!(out, "notes:")?;
    print_problems(notes, out)
}

/// The problems as JSON.
pub(crate) fn problems_json(problems: &[Problem]) -> Vec<Value> {
    problems
        .iter()
        .map(
            |p| json!({ "path": p.path.to_string_lossy(), "offset": p.offset, "detail": p.detail }),
        )
        .collect()
}
