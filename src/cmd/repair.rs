//! `firn repair`: makes a damaged directory usable again, and says what is gone.

use std::io::Write;

use firn_engine::Options;
use firn_engine::repair::repair_dir;
use serde_json::json;

use crate::exit::{Exit, Failure, Result};
use crate::flags::RepairArgs;
use crate::output::{self, ReportFormat};
use crate::progress::Progress;
use crate::{host, text};

pub(crate) fn run(args: &RepairArgs) -> Result<()> {
    let dir = host::absolute(&args.data_dir);
    let env = firn_io::Env::os(1);
    if !env.fs.exists(&dir)? {
        return Err(Failure::usage(format!("{} does not exist", dir.display())));
    }
    if args.dry_run {
        let report = super::verify::verify_files(&dir)?;
        super::verify::print(&report, args.format)?;
        return if report.is_clean() {
            Ok(())
        } else {
            Err(Failure::silent(Exit::Corruption))
        };
    }
    let what = format!(
        "this rewrites the state of {} (copy it first)",
        dir.display()
    );
    super::confirm(args.yes, &what)?;
    let mut progress = Progress::new("repair", Some(0));
    let report = repair_dir(&env, &dir, &Options::default(), &mut |now| {
        progress.set(0, now.bytes_done, now.bytes_total);
    });
    progress.finish();
    let report = report?;
    if args.format == ReportFormat::Json {
        output::print_json(&json!({
            "changed": report.changed,
            "tables_kept": report.tables_kept,
            "tables_rewritten": report.tables_rewritten,
            "tables_lost": report.tables_lost,
            "entries_kept": report.entries_kept,
            "log_operations_kept": report.log_operations_kept,
            "log_operations_lost": report.log_operations_lost,
            "losses": super::verify::problems_json(&report.losses),
            "notes": super::verify::problems_json(&report.notes),
        }))?;
    } else {
        let mut out = output::stdout();
        if !report.changed {
            writeln!(out, "nothing to repair")?;
        }
        writeln!(
            out,
            "tables: {} kept, {} rewritten, {} lost; {} entries kept",
            report.tables_kept,
            report.tables_rewritten,
            report.tables_lost,
            text::count(report.entries_kept)
        )?;
        writeln!(
            out,
            "log: {} operations moved to tables, {} lost",
            text::count(report.log_operations_kept),
            text::count(report.log_operations_lost)
        )?;
        writeln!(out, "losses: {}", report.losses.len())?;
        super::verify::print_problems(&report.losses, &mut out)?;
        super::verify::print_notes(&report.notes, &mut out)?;
        out.flush()?;
    }
    if report.losses.is_empty() {
        Ok(())
    } else {
        Err(Failure::silent(Exit::Corruption))
    }
}
