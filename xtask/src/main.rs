//! The project's chores, one word each: `cargo xtask <word>`.
//!
//! `ci` is what CI runs and never writes to the source; `fix` writes. Words that take arguments
//! pass the rest of the command line on.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for a person at a terminal"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool, not the database: it has its own files"
)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const HELP: &str = "\
cargo xtask <word>

  ci              everything that must hold before a change goes in
  fix             format, apply lints, write generated pages
  docs            write generated pages (docs/cli.md)
  proto           write the code of messages anew from proto/
  test [ARGS]     the tests
  grpc-client     the gRPC door with grpcio from PyPI (needs python3 and a network)
  http-fuzz [--examples N]
                  the HTTP door with schemathesis from PyPI (the same)
  redis [--commands N] [--seed S]
                  random commands here and on a redis-server, reply by reply (needs redis-server)
  redis-clients [BINARY]
                  the clients that people use, installed, each in a conversation (needs python3,
                  node, redis-tools and a network; what is missing is skipped and named)
  crash [--points N] [--seed S]
                  cut the power at N file operations of random histories
  model [--seeds N] [--seed S]
                  random histories under many options against an ordered map
  faults [--points N]
                  errors of the disk at N operations of every history
  kill [--rounds N] [--seed S]
                  kill -9 the server again and again, check that no acknowledged write is lost
  sim [--seeds N] [--from S] [--seed S] [--nodes 3|5|mix] [--minutes M] [--jobs J] ...
                  whole clusters in one thread, a seed each, with faults; `sim --help` lists all flags
  sim --planted   the same with bugs on purpose: each must be found
  cluster [--seconds S] [--old FILE]
                  three servers, everything that can happen to one of them or to the wires
                  between, each for S seconds (wires and full disks need root); with the binary of an
                  older build they are also upgraded from it, rolled back and upgraded again
  loom [--preemptions N]
                  every interleaving of memtable and publication, up to N preemptions a thread
  sanitize [ARGS] unit tests of disk and engine with AddressSanitizer (needs a nightly toolchain)
  fuzz [TARGET...] [--seconds S | --runs N] [--seed S]
                  every decoder against mutations of its seeds; `fuzz list` names the targets,
                  `fuzz TARGET FILE` runs one input, `fuzz seeds` makes the seeds anew
  fuzz TARGET --libfuzzer [--seconds S]
                  the same guided by coverage (a nightly toolchain and a C++ compiler)
  bench [ARGS]    the load generator, release build
";

type Result = std::result::Result<(), String>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("fix") => fix(),
        Some("docs") => docs(),
        Some("proto") => proto(),
        Some("grpc-client") => grpc_client(),
        Some("http-fuzz") => http_fuzz(rest),
        Some("test") => cargo("test", &["test"], rest),
        Some("redis") => REDIS.run(rest),
        Some("redis-clients") => redis_clients(rest),
        Some("crash") => CRASH.run(rest),
        Some("model") => MODEL.run(rest),
        Some("faults") => FAULTS.run(rest),
        Some("kill") => KILL.run(rest),
        Some("sim") => sim(rest),
        Some("cluster") => CLUSTER.run(rest),
        Some("loom") => loom(rest),
        Some("sanitize") => sanitize(rest),
        Some("fuzz") => fuzz(rest),
        Some("bench") => cargo("bench", &["run", "--release", "--", "bench"], rest),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// In order of how soon they fail.
fn ci() -> Result {
    cargo("format", &["fmt", "--all", "--", "--check"], &[])?;
    let format = ["fmt", "--manifest-path", "fuzz/Cargo.toml"];
    cargo("format of fuzz/", &format, &["--check".to_owned()])?;
    cargo(
        "tidy",
        &["test", "--package", "firn", "--test", "tidy"],
        &[],
    )?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo("clippy", &clippy, &[])?;
    cargo("tests", &["test", "--workspace"], &[])?;
    run(
        "documentation",
        Command::new(program())
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    fuzz(&["--seconds", FUZZ_SECONDS].map(str::to_owned))?;
    loom(&["--preemptions", "1"].map(str::to_owned))?;
    dependencies()?;
    println!("== all good");
    Ok(())
}

/// Bans, licences and sources; advisories come from a repository that a machine without a network
/// cannot reach. Installs cargo-deny beside the build if there is none.
fn dependencies() -> Result {
    const VERSION: &str = "0.20.2";
    let check = ["check", "bans", "licenses", "sources"];
    let mut deny = Command::new("cargo-deny");
    let installed = deny.arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return run("dependencies", Command::new("cargo-deny").args(check));
    }
    let tools = target("tools");
    let binary = tools.join("bin/cargo-deny");
    if !binary.exists() {
        run(
            "cargo-deny",
            Command::new(program())
                .args(["install", "cargo-deny", "--locked", "--quiet"])
                .args(["--version", VERSION, "--root"])
                .arg(&tools)
                .arg("--target-dir")
                .arg(tools.join("build")),
        )?;
    }
    run("dependencies", Command::new(binary).args(check))
}

fn fix() -> Result {
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
    ];
    cargo("lints", &clippy, &[])?;
    cargo("format", &["fmt", "--all"], &[])?;
    docs()
}

fn docs() -> Result {
    let output = Command::new(program())
        .args(["run", "--quiet", "--package", "firn", "--", "reference"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cargo run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let path = root().join("docs/cli.md");
    fs::write(&path, output.stdout).map_err(|error| format!("{}: {error}", path.display()))
}

/// A test of the suite that has a longer form.
struct Long {
    name: &'static str,
    package: &'static str,
    /// Which tests.
    filter: &'static str,
    /// Flag, variable, and the value without the flag.
    settings: &'static [(&'static str, &'static str, Option<&'static str>)],
}

const CRASH: Long = Long {
    name: "crash",
    package: "firn-engine",
    filter: "crash::",
    settings: &[
        ("--points", "FIRN_CRASH_POINTS", Some("100000")),
        ("--seed", "FIRN_CRASH_SEED", None),
    ],
};

const MODEL: Long = Long {
    name: "model",
    package: "firn-engine",
    filter: "model::",
    settings: &[
        ("--seeds", "FIRN_MODEL_SEEDS", Some("300")),
        ("--seed", "FIRN_MODEL_SEED", None),
    ],
};

const FAULTS: Long = Long {
    name: "faults",
    package: "firn-engine",
    filter: "faults::",
    settings: &[("--points", "FIRN_FAULT_POINTS", Some("100000"))],
};

const KILL: Long = Long {
    name: "kill",
    package: "firn",
    filter: "kill::",
    settings: &[
        ("--rounds", "FIRN_KILL_ROUNDS", Some("200")),
        ("--seed", "FIRN_KILL_SEED", None),
    ],
};

const CLUSTER: Long = Long {
    name: "cluster",
    package: "firn",
    filter: "cluster::",
    settings: &[
        ("--seconds", "FIRN_CLUSTER_SECONDS", Some("5")),
        ("--old", "FIRN_CLUSTER_OLD", None),
    ],
};

const REDIS: Long = Long {
    name: "redis",
    package: "firn-server",
    filter: "resp_redis::",
    settings: &[
        ("--commands", "RESP_COMMANDS", Some("200000")),
        ("--seed", "RESP_SEED", None),
    ],
};

impl Long {
    fn run(&self, rest: &[String]) -> Result {
        let mut command = Command::new(program());
        command.args(["test", "--release", "--package", self.package]);
        command.args(["--test", "it", "--", "--nocapture", self.filter]);
        for (_, variable, value) in self.settings {
            if let Some(value) = value {
                command.env(variable, value);
            }
        }
        let mut rest = rest.iter();
        while let Some(given) = rest.next() {
            let Some((flag, variable, _)) = self.settings.iter().find(|row| row.0 == given) else {
                return Err(format!("{} does not know {given}", self.name));
            };
            let value = rest.next().map_or("", String::as_str);
            let value = if *flag == "--old" {
                // The tests run elsewhere.
                fs::canonicalize(value).map_err(|e| format!("{flag} {value}: {e}"))?
            } else if value.parse::<u64>().is_ok() {
                PathBuf::from(value)
            } else {
                return Err(format!("{flag} wants a number"));
            };
            command.env(variable, value);
        }
        run(self.name, &mut command)
    }
}

/// Bugs on purpose, which only this build has. Not in `ci`: it builds two crates anew.
const PLANTED: [&str; 8] = [
    "test",
    "--package",
    "firn-sim",
    "--features",
    "planted-bugs",
    "--test",
    "it",
    "planted",
];

fn sim(rest: &[String]) -> Result {
    if rest.iter().any(|word| word == "--planted") {
        let profile = ["--profile", "sim", "--", "--nocapture"];
        return cargo("planted bugs", &PLANTED, &profile.map(str::to_owned));
    }
    let args = [
        "run",
        "--quiet",
        "--profile",
        "sim",
        "--package",
        "firn-sim",
    ];
    run(
        "sim",
        Command::new(program()).args(args).arg("--").args(rest),
    )
}

/// Model checking. Not the tests' target directory: every crate is built with other flags.
fn loom(rest: &[String]) -> Result {
    let preemptions = match rest {
        [] => "2",
        [flag, number] if flag == "--preemptions" && number.parse::<u8>().is_ok() => number,
        _ => return Err("loom takes --preemptions N".into()),
    };
    run(
        "loom",
        Command::new(program())
            .args(["test", "--package", "firn-engine", "--lib", "loom_tests"])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target("loom"))
            .env("LOOM_MAX_PREEMPTIONS", preemptions),
    )
}

/// The test that compares writes instead.
fn proto() -> Result {
    let test = ["test", "--package", "firn-server", "--test", "it", "proto"];
    run(
        "proto",
        Command::new(program()).args(test).env("UPDATE", "1"),
    )
}

fn grpc_client() -> Result {
    const PACKAGES: [&str; 3] = ["grpcio", "grpcio-reflection", "grpcio-health-checking"];
    let mut script = Command::new(python("grpc-client", &PACKAGES)?);
    cargo("build", &["build", "--package", "firn"], &[])?;
    script.arg("tests/clients/grpc_check.py");
    run("grpc-client", script.arg(target("debug/firn")))
}

fn http_fuzz(rest: &[String]) -> Result {
    let examples = match rest {
        [] => "200",
        [flag, number] if flag == "--examples" && number.parse::<u32>().is_ok() => number,
        _ => return Err("http-fuzz takes --examples N".into()),
    };
    let mut script = Command::new(python("http-fuzz", &["schemathesis"])?);
    cargo("build", &["build", "--package", "firn"], &[])?;
    script.arg("tests/clients/http_fuzz.py");
    run("http-fuzz", script.arg(target("debug/firn")).arg(examples))
}

/// A Python with these packages, which stay below the target directory.
fn python(name: &str, packages: &[&str]) -> std::result::Result<PathBuf, String> {
    let home = target(name);
    let (python, made) = (home.join("bin/python3"), home.join("made"));
    if !made.exists() {
        let mut venv = Command::new("python3");
        run("python", venv.args(["-m", "venv"]).arg(&home))?;
        let pip = ["-m", "pip", "install", "--quiet"];
        run("pip", Command::new(&python).args(pip).args(packages))?;
        fs::write(&made, "").map_err(|error| format!("{}: {error}", made.display()))?;
    }
    Ok(python)
}

/// The script installs below the target directory, and builds the server if no binary is given.
fn redis_clients(rest: &[String]) -> Result {
    let mut script = Command::new("sh");
    run(
        "redis-clients",
        script
            .arg("tests/clients/run.sh")
            .args(rest)
            .env("CLIENTS_DIR", target("clients")),
    )
}

fn sanitize(rest: &[String]) -> Result {
    let host = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    run(
        "sanitize",
        Command::new(program())
            .args(["+nightly", "test", "--target", &host, "--lib"])
            .args(["--package", "firn-io", "--package", "firn-engine"])
            .args(rest)
            .env("RUSTFLAGS", "-Zsanitizer=address")
            .env("CARGO_TARGET_DIR", target("sanitize")),
    )
}

/// A target directory below the usual one.
fn target(name: &str) -> PathBuf {
    let usual =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    usual.join(name)
}
/// What `ci` spends on all targets together.
const FUZZ_SECONDS: &str = "7";

fn fuzz(rest: &[String]) -> Result {
    if rest.iter().any(|word| word == "--libfuzzer") {
        return libfuzzer(rest);
    }
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    let mut args = vec!["run", "--quiet", "--release", "--locked"];
    args.extend(manifest);
    // Beside the product's own, so that a clean checkout has one folder to throw away.
    args.extend(["--target-dir", "target/fuzz", "--bin", "firn-fuzz", "--"]);
    cargo("fuzz", &args, rest)
}

/// Builds a target as cargo-fuzz does, and lets libFuzzer run it; the corpus that it finds stays
/// out of the source.
fn libfuzzer(rest: &[String]) -> Result {
    let (mut target, mut seconds) = (None, "60".to_owned());
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--libfuzzer" => {}
            "--seconds" => {
                let number = words.next().filter(|text| text.parse::<u64>().is_ok());
                seconds.clone_from(number.ok_or("--seconds wants a number")?);
            }
            name => target = Some(name),
        }
    }
    let target = target.ok_or("name a target: `cargo xtask fuzz list` shows them")?;
    // With --target, flags are not for build scripts.
    let host = "x86_64-unknown-linux-gnu";
    let flags = [
        "--cfg fuzzing -Ccodegen-units=1 -Zsanitizer=address -Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
    ];
    let build = [
        "+nightly",
        "build",
        "--release",
        "--locked",
        "--bin",
        target,
    ];
    run(
        "build",
        Command::new(program())
            .args(build)
            .args([
                "--manifest-path",
                "fuzz/Cargo.toml",
                "--features",
                "libfuzzer",
            ])
            .args(["--target", host, "--target-dir", "target/libfuzzer"])
            .env("RUSTFLAGS", flags.join(" ")),
    )?;
    let found = root().join("target/libfuzzer/corpus").join(target);
    let artifacts = root().join("fuzz/artifacts").join(target);
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    let binary = root()
        .join("target/libfuzzer")
        .join(host)
        .join("release")
        .join(target);
    run(
        target,
        Command::new(binary)
            .arg(found)
            .arg(root().join("fuzz/corpus").join(target))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048"]),
    )
}

fn cargo(what: &str, args: &[&str], rest: &[String]) -> Result {
    run(what, Command::new(program()).args(args).args(rest))
}

fn run(what: &str, command: &mut Command) -> Result {
    println!("== {what}");
    let started = Instant::now();
    let status = command
        .current_dir(root())
        .status()
        .map_err(|error| format!("{what}: {error}"))?;
    if !status.success() {
        return Err(format!("{what} failed ({status})"));
    }
    println!("== {what}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// `cargo` by name, so that `+toolchain` works.
fn program() -> &'static str {
    "cargo"
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_path_buf()
}
