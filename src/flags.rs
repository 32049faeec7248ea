//! The one table of flags: help, manual pages, completions and `docs/cli.md` come from it.
//!
//! The flags of `serve` come from the table of settings of the server, so that file, environment
//! and flags always know the same names.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use firn_engine::WriteOptions;
use firn_server::config::SETTINGS;

use crate::exit::TABLE;
use crate::foreign::System;
use crate::output::{Format, ReportFormat};
use crate::text::KeyEncoding;

fn exit_codes() -> String {
    let mut help = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        help.push_str(&format!("  {}  {meaning}\n", exit as u8));
    }
    help.push_str("\nData goes to stdout, messages to stderr.");
    help
}

/// A persistent, ordered key/value store: the server, and the command to use and tend it.
#[derive(Debug, Parser)]
#[command(name = "firn", version, after_help = exit_codes(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// No messages but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Serve(ServeArgs),
    Get(GetArgs),
    Put(PutArgs),
    Del(DelArgs),
    Scan(ScanArgs),
    Batch(BatchArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    Ns(NsArgs),
    Cluster(ClusterArgs),
    Watch(WatchArgs),
    Bench(Box<BenchArgs>),
    Verify(VerifyArgs),
    Repair(RepairArgs),
    Checkpoint(CheckpointArgs),
    Inspect(InspectArgs),
    Config(ConfigArgs),
    Doctor(DoctorArgs),
    Health(HealthArgs),
    Demo(DemoArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    /// Prints the reference of the command line in Markdown
    #[command(hide = true)]
    Reference,
}

/// Which store, and which namespace of it.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// The server to talk to [default: 127.0.0.1:8080]
    #[arg(
        long,
        value_name = "ADDR",
        conflicts_with = "data_dir",
        help_heading = "Store"
    )]
    pub(crate) server: Option<String>,
    /// Open the files in this directory instead; no server may hold them
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The namespace
    #[arg(long, value_name = "NAME", default_value = crate::store::DEFAULT_NAMESPACE, help_heading = "Store")]
    pub(crate) ns: String,
    /// Memory of the store opened with --data-dir, as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "data_dir", help_heading = "Store")]
    pub(crate) memory: Option<usize>,
}

/// How keys are typed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct KeyArgs {
    /// How keys are written on this command line
    #[arg(long, value_enum, value_name = "ENC", default_value = "text")]
    pub(crate) key_encoding: KeyEncoding,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// When it survives power loss
    Sync,
    /// When it survives the death of the process
    Buffered,
}

impl Durability {
    pub(crate) fn options(self) -> WriteOptions {
        match self {
            Self::Sync => WriteOptions::sync(),
            Self::Buffered => WriteOptions::buffered(),
        }
    }

    pub(crate) fn remote(self) -> firn_client::Durability {
        match self {
            Self::Sync => firn_client::Durability::Sync,
            Self::Buffered => firn_client::Durability::Buffered,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Buffered => "buffered",
        }
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct DurabilityArgs {
    /// When a write is acknowledged
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "sync")]
    pub(crate) durability: Durability,
}

/// A range of keys.
#[derive(Clone, Debug, Args)]
pub(crate) struct RangeArgs {
    /// Every key that starts with this
    #[arg(long, value_name = "KEY", conflicts_with_all = ["start", "end"])]
    pub(crate) prefix: Option<OsString>,
    /// From this key on (inclusive)
    #[arg(long, value_name = "KEY")]
    pub(crate) start: Option<OsString>,
    /// Up to this key (exclusive)
    #[arg(long, value_name = "KEY")]
    pub(crate) end: Option<OsString>,
}

/// Runs the server
///
/// Settings come from the configuration file, then from FIRN_... variables, then from flags; the
/// later wins. One line on stdout says `ready` when every listener answers. SIGTERM drains and ends
/// it; a second one ends it at once. At SIGHUP a node with peer_cert reads its certificates anew.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn serve --data-dir /var/lib/firn\n  firn serve --data-dir ./data --http 127.0.0.1:0\n  firn serve --config /etc/firn.toml"
)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// The configuration file, and a flag for every setting of the server.
#[derive(Debug, Default)]
pub(crate) struct SettingArgs {
    pub(crate) config: Option<PathBuf>,
    pub(crate) flags: Vec<(String, String)>,
}

impl Args for SettingArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("The configuration file (TOML)");
        SETTINGS
            .iter()
            .fold(command.arg(config), |command, setting| {
                let mut help = format!(
                    "{} [env: {}]",
                    setting.help.trim_end_matches('.'),
                    setting.env
                );
                if !setting.default.is_empty() {
                    help.push_str(&format!(" [default: {}]", setting.default));
                }
                let mut arg = Arg::new(setting.key)
                    .long(setting.flag.trim_start_matches('-'))
                    .value_name(setting.metavar)
                    .action(ArgAction::Set)
                    .help(help);
                if setting.key == "dialect" {
                    arg = arg.action(ArgAction::Append);
                }
                if setting.metavar == "BOOL" {
                    arg = arg
                        .num_args(0..=1)
                        .require_equals(true)
                        .default_missing_value("true")
                        .hide_possible_values(true);
                }
                command.arg(arg)
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one("config").cloned();
        self.flags = SETTINGS
            .iter()
            .filter_map(|setting| {
                // Only a list is given several times.
                let values = matches.get_many::<String>(setting.key)?;
                let value = values.cloned().collect::<Vec<_>>().join(",");
                Some((setting.key.to_owned(), value))
            })
            .collect();
        Ok(())
    }
}

/// Prints the value of a key
///
/// Exit code 1 if the key does not exist.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn get greeting\n  firn get logo.png > logo.png\n  firn get greeting --format json"
)]
pub(crate) struct GetArgs {
    #[arg(value_name = "KEY")]
    pub(crate) key: OsString,
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "raw")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Stores a value under a key
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn put greeting 'hello, world'\n  firn put logo.png --file logo.png\n  date | firn put now -\n  firn put lock me --if-absent --ttl 30s"
)]
pub(crate) struct PutArgs {
    #[arg(value_name = "KEY")]
    pub(crate) key: OsString,
    /// The value; `-` reads stdin
    #[arg(
        value_name = "VALUE",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    pub(crate) value: Option<OsString>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Let it expire after this time, as 30s, 5m, 24h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Only if the key does not exist (else exit code 1)
    #[arg(long, conflicts_with_all = ["if_exists", "if_version"])]
    pub(crate) if_absent: bool,
    /// Only if the key exists (else exit code 1)
    #[arg(long, conflicts_with = "if_version")]
    pub(crate) if_exists: bool,
    /// Only if the key has this version (else exit code 1)
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
    /// Print the version that was written
    #[arg(long)]
    pub(crate) print_version: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Deletes keys, or a range of keys
///
/// A key that does not exist is no error. A range needs --yes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn del greeting logo.png\n  firn del --prefix tmp/ --dry-run\n  firn del --prefix tmp/ --yes"
)]
pub(crate) struct DelArgs {
    #[arg(value_name = "KEY", required_unless_present_any = ["prefix", "start", "end"], conflicts_with_all = ["prefix", "start", "end"])]
    pub(crate) targets: Vec<OsString>,
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// Only say how many keys would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do it without asking
    #[arg(long, short)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Prints the entries of a range in order
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn scan --prefix user/ --limit 10\n  firn scan --start a --end b --reverse\n  firn scan --values --separator '\\n'      every value, byte for byte, each followed by a newline\n  firn scan --format ndjson | jq .key"
)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// From the last key to the first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// At most so many entries
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Only the keys
    #[arg(long = "keys", visible_alias = "keys-only")]
    pub(crate) keys_only: bool,
    /// Only the values, as they are
    #[arg(long, conflicts_with_all = ["keys_only", "format"])]
    pub(crate) values: bool,
    /// Only the number of entries
    #[arg(long, conflicts_with_all = ["values", "keys_only", "format"])]
    pub(crate) count: bool,
    /// After each entry with --values or --format raw; \n \r \t \0 \\ \xHH are understood
    #[arg(long, value_name = "TEXT")]
    pub(crate) separator: Option<OsString>,
    /// How to print them
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// How changes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WatchFormat {
    /// Columns: version, what, namespace, key, value
    Text,
    /// A JSON object a line, as the server sends them
    Ndjson,
}

/// Prints every change as it is committed, until it is interrupted
///
/// What is printed is durable. A connection that breaks is made again, and no change is missed or
/// printed twice. At the end a line on stderr says where to go on. Changes that were committed before
/// are there for as long as the server keeps them (changefeed.bytes, changefeed.age).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn watch --prefix user/\n  firn watch --all-namespaces --format ndjson --from 4711"
)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// The first version to print [default: what is committed from now on]
    #[arg(long, value_name = "VERSION")]
    pub(crate) from: Option<u64>,
    /// End after so many changes
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Without values
    #[arg(long = "keys", visible_alias = "keys-only")]
    pub(crate) keys_only: bool,
    /// How to print them
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: WatchFormat,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// The server to talk to
    #[arg(long, value_name = "ADDR", default_value = crate::store::DEFAULT_SERVER, help_heading = "Store")]
    pub(crate) server: String,
    /// The namespace
    #[arg(long, value_name = "NAME", default_value = crate::store::DEFAULT_NAMESPACE, help_heading = "Store")]
    pub(crate) ns: String,
    /// Every namespace
    #[arg(long, conflicts_with = "ns", help_heading = "Store")]
    pub(crate) all_namespaces: bool,
    /// How long the server may be unreachable before this gives up
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "60s", help_heading = "Store")]
    pub(crate) patience: Duration,
}

/// Writes many operations together: all or nothing
///
/// Reads a JSON object a line, as the HTTP door's batch takes them:
/// {"op":"put","key":"a","value":"x"}, {"op":"delete","key":"b"},
/// {"op":"delete_range","start":"c","end":"d"}, {"op":"check","key":"e","if_version":7}.
/// Any operation on a key takes if_absent, if_exists or if_version; bytes that are not text go
/// under key_b64 and value_b64.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  printf '%s\\n' '{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}' '{\"op\":\"delete\",\"key\":\"b\"}' | firn batch"
)]
pub(crate) struct BatchArgs {
    /// The file with the operations; `-` is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// Only check the input
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the version that was written last
    #[arg(long)]
    pub(crate) print_version: bool,
    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Where imported entries come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// Stanzas of `Field: value` lines with blank lines between, as `apt-cache dumpavail` prints;
    /// the key is a field, the value the stanza
    Deb822,
    /// Every file under a directory: the key is the path, the value the bytes. Links to files count
    /// as files, links to directories are left out
    Dir,
    /// As `firn scan --format ndjson` and `firn export` print
    Ndjson,
    /// As `firn export --format dump` writes
    Dump,
    /// Lines of key, tab, value; a carriage return before the newline is part of the value
    Lines,
    /// Data files of the system that spoke the dialect kv-json
    #[value(alias = "000")]
    KvJson,
    /// Data files of the system that spoke put-read
    #[value(alias = "001")]
    PutRead,
    /// Data files of the system that spoke v1-raw, single server
    #[value(alias = "002")]
    V1Raw,
    /// Data files of the system that spoke query
    #[value(alias = "003")]
    Query,
    /// Data files of the system that spoke kv-verbs
    #[value(alias = "004")]
    KvVerbs,
}

impl Source {
    /// The system whose files these are.
    pub(crate) fn system(self) -> Option<System> {
        Some(match self {
            Self::KvJson => System::KvJson,
            Self::PutRead => System::PutRead,
            Self::V1Raw => System::V1Raw,
            Self::Query => System::Query,
            Self::KvVerbs => System::KvVerbs,
            Self::Deb822 | Self::Dir | Self::Ndjson | Self::Dump | Self::Lines => return None,
        })
    }
}

/// Stores many entries from a file, a directory or stdin
///
/// Entries are written in batches as they are read, so memory is bounded; running it again with the
/// same input ends in the same state. Of entries with the same key the last wins. One that ends
/// early, by an error or a signal, says how many entries are stored and with which `--skip` to go on.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  apt-cache dumpavail | firn import --format deb822 -\n  firn import --format dir /usr/share/doc --prefix doc/\n  firn import --from put-read /var/lib/old/data\n  firn export | firn import --format ndjson - --ns copy --server other:8080"
)]
pub(crate) struct ImportArgs {
    /// The kind of input
    #[arg(
        long = "format",
        visible_alias = "from",
        value_enum,
        value_name = "KIND"
    )]
    pub(crate) from: Source,
    /// The file or directory; `-` is stdin
    #[arg(value_name = "PATH", default_value = "-")]
    pub(crate) path: PathBuf,
    /// Put this before every key
    #[arg(long, value_name = "KEY", default_value = "")]
    pub(crate) prefix: OsString,
    /// deb822: the field that is the key [default: Package]
    #[arg(long = "key", visible_alias = "key-field", value_name = "FIELD")]
    pub(crate) key_field: Option<String>,
    /// dir: store everything so many times, under PREFIX0000/, PREFIX0001/...
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) repeat: Option<u64>,
    /// Skip so many entries of the input: resumes an import that was cut
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) skip: u64,
    /// Leave out what cannot be read or is too large for the store, and report it, instead of
    /// stopping
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// Read and check everything, store nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Bytes of a batch
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size)]
    pub(crate) batch_size: usize,
    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A JSON object a line, and a trailer
    Ndjson,
    /// Length-prefixed, checksummed records
    Dump,
}

/// Writes the entries of a range to a file or stdout, so that import restores them byte for byte
///
/// Everything is as it was at one instant, whatever is written meanwhile. An export from a server
/// whose connection breaks has failed: it cannot go on where it was.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn export --format dump --output backup.firn\n  firn export --prefix user/ | gzip > users.ndjson.gz"
)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// How to write it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "ndjson")]
    pub(crate) format: ExportFormat,
    /// To this file instead of stdout; it appears when it is whole
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Lists, makes and drops namespaces
#[derive(Debug, Args)]
pub(crate) struct NsArgs {
    #[command(subcommand)]
    pub(crate) action: NsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NsAction {
    /// Prints the names
    List {
        /// How to print them
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
        format: NsFormat,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Makes a namespace (exit code 1 if it is there)
    Create {
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Drops a namespace and everything in it
    Drop {
        #[arg(value_name = "NAME")]
        name: String,
        /// Do it without asking
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NsFormat {
    /// A name a line
    Text,
    /// With estimated numbers of keys
    Table,
    /// One JSON document
    Json,
}

/// What the load generator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mix {
    /// Puts every key once, in order
    Fillseq,
    /// Puts keys in random order
    Fillrandom,
    /// Puts keys that exist
    Overwrite,
    /// Gets keys that exist
    Readrandom,
    /// Gets keys that do not exist
    Readmissing,
    /// Scans everything forward
    Readseq,
    /// Scans everything backward
    Readreverse,
    /// Seeks to a key and reads --scan-length entries
    Seek,
    /// Half gets, half puts
    Mixed,
    /// Deletes keys that exist
    Deleterandom,
    /// 50 % read, 50 % update
    YcsbA,
    /// 95 % read, 5 % update
    YcsbB,
    /// Reads only
    YcsbC,
    /// 95 % read of the latest, 5 % insert
    YcsbD,
    /// 95 % short scans, 5 % insert
    YcsbE,
    /// 50 % read, 50 % read-modify-write
    YcsbF,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribution {
    /// Each with the same chance
    Uniform,
    /// Few are hot (Zipf, 0.99), spread over the whole range
    Zipf,
    /// The newest are hot
    Latest,
}

/// Measures an embedded store or a server
///
/// Without --server and --data-dir it works in a temporary directory, which it removes. Latencies
/// are those of single operations; with --rate they count from the moment when the operation was
/// due, so that a stall is seen in full.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn bench\n  firn bench --mix fillrandom,readrandom --keys 10000000 --value-size 100 --durability buffered\n  firn bench --server 127.0.0.1:8080 --mix ycsb-a --threads 64 --duration 30s --rate 20000 --format json"
)]
pub(crate) struct BenchArgs {
    /// What to do, one after the other
    #[arg(
        long,
        value_enum,
        value_name = "MIX",
        value_delimiter = ',',
        default_value = "fillrandom,readrandom,readseq"
    )]
    pub(crate) mix: Vec<Mix>,
    /// Number of different keys
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
    /// Bytes of a key, at least 8
    #[arg(long, value_name = "SIZE", default_value = "16", value_parser = parse_size)]
    pub(crate) key_size: usize,
    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = parse_size)]
    pub(crate) value_size: usize,
    /// Share of a value that does not compress
    #[arg(long, value_name = "RATIO", default_value_t = 0.5)]
    pub(crate) entropy: f64,
    /// Threads, each with one operation in flight
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) threads: u64,
    /// Operations of each mix (all threads together) [default: as many as keys]
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    pub(crate) ops: Option<u64>,
    /// Time of each mix, instead of a number of operations
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Puts in one batch
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) batch: u64,
    /// Entries that a short scan reads
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    pub(crate) scan_length: u64,
    /// How keys are chosen [default: uniform; ycsb: as it says]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) distribution: Option<Distribution>,
    /// Operations a second (all threads together), whether or not the store keeps up
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Seed of every random choice
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Do not fill an empty store before a mix that reads
    #[arg(long)]
    pub(crate) no_load: bool,
    /// How to print the results
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
    /// Compact everything after filling, before reads are measured (embedded store)
    #[arg(long)]
    pub(crate) compact: bool,
    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
    /// The server to measure
    #[arg(
        long,
        value_name = "ADDR",
        conflicts_with = "data_dir",
        help_heading = "Store"
    )]
    pub(crate) server: Option<String>,
    /// Measure an embedded store in this directory, and leave it there
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The namespace
    #[arg(long, value_name = "NAME", default_value = crate::store::DEFAULT_NAMESPACE, help_heading = "Store")]
    pub(crate) ns: String,
    /// Memory of the embedded store
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "server", help_heading = "Store")]
    pub(crate) memory: Option<usize>,
}

/// Shows and changes who belongs to a cluster
///
/// `init`, `join` and `recover` work on the directory of a node that does not run; the others ask a
/// server, and follow it to the leader.
#[derive(Debug, Args)]
#[command(
    after_help = "Three nodes on one machine:\n  firn serve --data-dir d1 --peer-addr 127.0.0.1:7001 --init-cluster\n  firn serve --data-dir d2 --http 127.0.0.1:8082 --resp off --peer-addr 127.0.0.1:7002 --join 127.0.0.1:8080\n  firn serve --data-dir d3 --http 127.0.0.1:8083 --resp off --peer-addr 127.0.0.1:7003 --join 127.0.0.1:8080"
)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    pub(crate) action: ClusterAction,
}

/// Which node is asked.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    /// A node of the cluster
    #[arg(long, value_name = "ADDR", default_value = crate::store::DEFAULT_SERVER)]
    pub(crate) server: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterAction {
    /// Makes a directory the first node of a new cluster, with what is in it; takes the flags of serve
    Init {
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Makes an empty directory a node of the cluster that --join names; takes the flags of serve
    Join {
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Prints how the cluster is, as one of its nodes sees it
    Status {
        /// How to print it
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
        format: ReportFormat,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Prints who belongs to the cluster, as the leader sees it
    Members {
        /// How to print them
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
        format: ReportFormat,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Gives a node that has caught up a vote
    Promote {
        #[arg(value_name = "NODE")]
        node: u64,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Takes the vote of a node, which goes on getting everything
    Demote {
        #[arg(value_name = "NODE")]
        node: u64,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Removes a node for good; its directory must not be used again
    Remove {
        #[arg(value_name = "NODE")]
        node: u64,
        /// Although the rest is then no majority that can be reached
        #[arg(long)]
        force: bool,
        /// Do it without asking
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Lets another node lead: the one named, or who has most of the log
    Transfer {
        #[arg(value_name = "NODE")]
        node: Option<u64>,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Makes the one node that is left of a cluster a cluster of its own
    ///
    /// For when a majority is lost for good. What this node's log has is kept, whether a majority had
    /// it or not; acknowledged writes that only the lost nodes had are lost. The others must never be
    /// started again with what they have: give them empty directories and let them join.
    Recover {
        /// The directory; no server may hold it
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Do it without asking
        #[arg(long, short)]
        yes: bool,
    },
}

/// Reads every byte and checks every checksum and invariant
///
/// Exit code 5 if something is damaged.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The directory; no server may hold it
    #[arg(long, value_name = "DIR", required_unless_present = "server")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Let this server verify itself while it runs
    #[arg(long, value_name = "ADDR", conflicts_with = "data_dir")]
    pub(crate) server: Option<String>,
    /// How to print the report
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
}

/// Makes a damaged directory usable again, with what is readable
///
/// What cannot be used is moved to lost/ and reported. Copy the directory first, and prefer a good
/// copy to a repaired one: acknowledged writes may be gone. Exit code 5 if something was lost.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// The directory
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Only say what verification finds
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do it without asking
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// How to print the report
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
}

/// Makes a consistent copy that can be opened, by hard links where possible
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  firn checkpoint --data-dir ./data ./copy\n  firn checkpoint --server 127.0.0.1:8080 before-upgrade"
)]
pub(crate) struct CheckpointArgs {
    /// The directory to make; with --server the name of the checkpoint on the server's disk
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// The directory to copy; no server may hold it
    #[arg(long, value_name = "DIR", required_unless_present = "server")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Let this server make a checkpoint while it runs
    #[arg(long, value_name = "ADDR", conflicts_with = "data_dir")]
    pub(crate) server: Option<String>,
}

/// Shows what a store consists of: files, levels, log, namespaces
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The directory; nothing in it is changed
    #[arg(long, value_name = "DIR", required_unless_present = "server")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Ask this server instead
    #[arg(long, value_name = "ADDR", conflicts_with = "data_dir")]
    pub(crate) server: Option<String>,
    /// List every file
    #[arg(long)]
    pub(crate) files: bool,
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
}

/// Checks and prints the configuration
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Checks file, environment and flags; exit code 2 if something is wrong
    Check {
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Prints the defaults, or with --effective what `firn serve` would use
    Print {
        /// With the file, the environment and the flags
        #[arg(long)]
        effective: bool,
        #[command(flatten)]
        settings: SettingArgs,
    },
}

/// Looks at the machine and says what will hurt
///
/// Measures fdatasync, looks at free space, limits, clock, memory and kernel settings. Exit code 1
/// if something should be changed.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The directory where the data is or will be
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) data_dir: PathBuf,
    /// The memory that the store shall have
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512MiB")]
    pub(crate) memory: usize,
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
}

/// Asks a server whether it is ready (for container health checks)
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// The server to ask
    #[arg(long, value_name = "ADDR", default_value = crate::store::DEFAULT_SERVER)]
    pub(crate) server: String,
}

/// Kills the leader of a cluster of three under load, and shows what happens
///
/// Three servers are started on this machine and written to by several clients; one of them is killed
/// without warning (SIGKILL), and started again later. At the end every acknowledged write is read.
/// Exit code 5 if one is lost. Everything is removed afterwards.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Clients that write
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) clients: u64,
    /// How long they write
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    pub(crate) time: Duration,
    /// As `firn serve` has it
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "500ms")]
    pub(crate) cluster_election_timeout: Duration,
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ReportFormat,
}

/// Prints completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  firn completions bash > ~/.local/share/bash-completion/completions/firn"
)]
pub(crate) struct CompletionsArgs {
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Writes manual pages
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The directory for them
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

fn parse_size(text: &str) -> Result<usize, String> {
    let bytes = firn_api::size::parse(text)?;
    usize::try_from(bytes).map_err(|_| format!("{text} is more than this machine can address"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match firn_api::duration::parse(text)? {
        Duration::ZERO => Err("it must be more than 0".into()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_table_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
