//! The rules of the house that no compiler knows: which crate may use which, which module may name
//! which, what a source file may hold. Each failure names file and line.
#![allow(
    clippy::disallowed_methods,
    reason = "reads the source tree, not the database"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crate, and the crates of ours that it may depend on (tests may look anywhere).
const CRATES: &[(&str, &[&str])] = &[
    ("firn-io", &[]),
    ("firn-engine", &["firn-io"]),
    ("firn-replica", &["firn-engine", "firn-io"]),
    ("firn-peer", &["firn-replica", "firn-engine", "firn-io"]),
    ("firn-api", &[]),
    (
        "firn-server",
        &[
            "firn-api",
            "firn-peer",
            "firn-replica",
            "firn-engine",
            "firn-io",
        ],
    ),
    ("firn-client", &["firn-api"]),
    ("firn-sim", &["firn-replica", "firn-engine", "firn-io"]),
    (
        "firn",
        &[
            "firn-api",
            "firn-client",
            "firn-server",
            "firn-peer",
            "firn-replica",
            "firn-engine",
            "firn-io",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that a program embeds, and what it must never find below them.
const EMBEDDED: &[(&str, &[&str])] = &[
    (
        "crates/io",
        &[
            "tokio",
            "serde",
            "serde_json",
            "tracing",
            "log",
            "futures",
            "async-std",
        ],
    ),
    (
        "crates/engine",
        &[
            "tokio",
            "serde",
            "serde_json",
            "tracing",
            "log",
            "futures",
            "async-std",
        ],
    ),
];

/// Crates whose modules stand in an order, which their `lib.rs` documents after the words
/// "Module order": a module names only modules before it.
const ORDERED: &[&str] = &[
    "crates/io",
    "crates/engine",
    "crates/replica",
    "crates/peer",
    "crates/sim",
];

/// Libraries of which every public item is documented.
const DOCUMENTED: &[&str] = &[
    "crates/io",
    "crates/engine",
    "crates/replica",
    "crates/peer",
    "crates/api",
    "crates/server",
    "crates/client",
    "crates/sim",
];

/// Columns. The formatter keeps code within 100 where it can; strings may be longer.
const LONGEST_LINE: usize = 120;
/// Lines without the tests at the end. A file beyond this has more than one subject.
const LONGEST_FILE: usize = 1400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` that ends with `suffix`; build directories are left out.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && name != ".git" && name != "corpus" && name != "node_modules" {
                found.extend(files(&path, suffix));
            }
        } else if name.ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn sources() -> Vec<PathBuf> {
    ["crates", "src", "tests", "xtask", "fuzz"]
        .iter()
        .flat_map(|dir| files(&root().join(dir), ".rs"))
        .collect()
}

fn refuse(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The names under `[section]` of a Cargo.toml, and under `[section.name]`.
fn section(manifest: &str, wanted: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(head) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            inside = head == wanted || head.ends_with(&format!("'.{wanted}"));
            if let Some(name) = head.strip_prefix(&format!("{wanted}.")) {
                names.insert(name.to_owned());
            }
        } else if inside && let Some((name, _)) = line.split_once('=') {
            names.insert(name.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    names
}

fn manifests() -> BTreeMap<String, (PathBuf, String)> {
    let mut all = BTreeMap::new();
    let mut paths = files(&root().join("crates"), "Cargo.toml");
    paths.extend([root().join("Cargo.toml"), root().join("xtask/Cargo.toml")]);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let package = text.split("[package]").nth(1).expect("a package");
        let name = package
            .lines()
            .find_map(|line| line.strip_prefix("name = "));
        all.insert(
            name.expect("a name").trim_matches('"').to_owned(),
            (path, text),
        );
    }
    all
}

#[test]
fn crates_use_only_what_they_may() {
    let mut problems = Vec::new();
    for (name, (path, manifest)) in manifests() {
        let Some((_, allowed)) = CRATES.iter().find(|row| row.0 == name) else {
            problems.push(format!(
                "{}: {name} is not in the table of crates",
                shown(&path)
            ));
            continue;
        };
        let mut used = section(&manifest, "dependencies");
        used.extend(section(&manifest, "build-dependencies"));
        for other in used.iter().filter(|other| other.starts_with("firn")) {
            if !allowed.contains(&other.as_str()) {
                problems.push(format!("{}: {name} may not use {other}", shown(&path)));
            }
        }
    }
    refuse(&problems);
}

#[test]
fn embedded_crates_stay_light() {
    let mut problems = Vec::new();
    for (dir, forbidden) in EMBEDDED {
        let path = root().join(dir).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap();
        let used = section(&manifest, "dependencies");
        for name in forbidden.iter().filter(|name| used.contains(**name)) {
            problems.push(format!("{}: {name} has no place here", shown(&path)));
        }
    }
    refuse(&problems);
}

/// The paths that a line names below `crate::`, without those in comments: `crate::a::b` gives
/// `a::b`.
fn named_paths(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut rest = code;
    let mut paths = Vec::new();
    while let Some(at) = rest.find("crate::") {
        let before = rest[..at].chars().next_back();
        rest = &rest[at + "crate::".len()..];
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let end = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
        paths.push(rest[..end].trim_end_matches(':'));
    }
    paths
}

/// The documented order of a crate's modules, bottom first: `error`, `compaction::pick`...
struct Order(Vec<String>);

impl Order {
    fn read(lib: &str) -> Option<Self> {
        let docs: Vec<&str> = lib
            .lines()
            .filter_map(|line| line.strip_prefix("//!"))
            .collect();
        let docs = docs.join("\n");
        let list = docs.split("Module order").nth(1)?.split("\n\n").next()?;
        Some(Self(
            list.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
        ))
    }

    /// Where a path stands: by the longest listed beginning of it. A module of which only parts are
    /// listed stands where the last of its parts does.
    fn rank(&self, path: &str) -> Option<usize> {
        let mut head = path;
        loop {
            if let Some(at) = self.0.iter().position(|listed| listed == head) {
                return Some(at);
            }
            match head.rsplit_once("::") {
                Some((shorter, _)) => head = shorter,
                None => break,
            }
        }
        let parts = format!("{head}::");
        self.0.iter().rposition(|listed| listed.starts_with(&parts))
    }
}

/// The module path of a file: `compaction/pick.rs` is `compaction::pick`.
fn module_of(path: &Path, src: &Path) -> String {
    let relative = path.strip_prefix(src).unwrap().with_extension("");
    let parts: Vec<_> = relative
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    let module = parts.join("::");
    module
        .strip_suffix("::mod")
        .map_or(module.clone(), str::to_owned)
}

/// The lines before `#[cfg(test)]`, numbered from 1. Tests may look anywhere.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line))
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
}

#[test]
fn modules_name_only_what_is_below() {
    let mut problems = Vec::new();
    for dir in ORDERED {
        let src = root().join(dir).join("src");
        let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
        let Some(order) = Order::read(&lib) else {
            problems.push(format!("{dir}/src/lib.rs: documents no \"Module order\""));
            continue;
        };
        for path in files(&src, ".rs") {
            let module = module_of(&path, &src);
            if module == "lib" || module.ends_with("tests") {
                continue;
            }
            let Some(own) = order.rank(&module) else {
                let list = format!("the module order of {dir}/src/lib.rs");
                problems.push(format!("{}: {module} is not in {list}", shown(&path)));
                continue;
            };
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in product_lines(&text) {
                for named in named_paths(line) {
                    let place = format!("{}:{number}", shown(&path));
                    match order.rank(named) {
                        _ if named.is_empty() => problems
                            .push(format!("{place}: one full path a line, not crate::{{...}}")),
                        None => problems.push(format!(
                            "{place}: crate::{named} is no module: name things by their full path"
                        )),
                        Some(other) if other > own => {
                            problems.push(format!("{place}: {module} may not name {named}"));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        let gone = order.0.iter().filter(|listed| {
            let file = src.join(listed.replace("::", "/"));
            !file.is_dir() && !file.with_extension("rs").exists()
        });
        problems.extend(gone.map(|listed| format!("{dir}/src/lib.rs: there is no {listed}")));
    }
    refuse(&problems);
}

#[test]
fn sources_are_clean() {
    // Split, so that this file does not find itself.
    let stray = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let machine = [
        concat!("/wo", "rk/"),
        concat!("/tmp/", "wt"),
        concat!("/ro", "ot/"),
    ];
    let mut problems = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            let place = format!("{}:{}", shown(&path), i + 1);
            // Comments may draw; code that looks alike must be alike.
            let code = line.split("//").next().unwrap_or_default();
            if let Some(c) = code.chars().find(|c| !c.is_ascii()) {
                problems.push(format!("{place}: {c:?} is not ASCII: write \\u{{...}}"));
            }
            let width = line.chars().count();
            if width > LONGEST_LINE && !line.contains('"') && !line.contains("://") {
                problems.push(format!("{place}: {width} columns, at most {LONGEST_LINE}"));
            }
            if let Some(word) = stray.iter().find(|word| line.contains(**word)) {
                problems.push(format!("{place}: {word}: do it, or open an issue"));
            }
            if let Some(word) = machine.iter().find(|word| line.contains(**word)) {
                problems.push(format!("{place}: {word} is a path of somebody's machine"));
            }
        }
    }
    for path in sources() {
        let lines = product_lines(&fs::read_to_string(&path).unwrap()).count();
        if lines > LONGEST_FILE {
            let place = shown(&path);
            problems.push(format!(
                "{place}: {lines} lines, at most {LONGEST_FILE}: split it"
            ));
        }
    }
    for path in texts() {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            if let Some(word) = machine.iter().find(|word| line.contains(**word)) {
                let place = format!("{}:{}", shown(&path), i + 1);
                problems.push(format!("{place}: {word} is a path of somebody's machine"));
            }
        }
    }
    refuse(&problems);
}

/// Documents, manifests and scripts.
fn texts() -> Vec<PathBuf> {
    let mut all = documents();
    all.extend(files(&root().join("crates"), ".toml"));
    all.extend(files(&root().join(".ci"), ""));
    all.push(root().join("Cargo.toml"));
    all
}

fn documents() -> Vec<PathBuf> {
    let mut all = files(&root().join("docs"), ".md");
    let top = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    all.extend(top.filter(|path| path.extension().is_some_and(|e| e == "md")));
    all
}

/// The targets of `[text](target)` in a line, with their column.
fn links(line: &str) -> Vec<&str> {
    let parts = line.split("](").skip(1);
    parts
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

#[test]
fn links_in_documents_exist() {
    let mut problems = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let mut in_code = false;
        for (i, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            for target in links(line) {
                let file = target.split('#').next().unwrap_or_default();
                if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                    continue;
                }
                if !path.parent().unwrap().join(file).exists() {
                    let place = format!("{}:{}", shown(&path), i + 1);
                    problems.push(format!("{place}: {target} does not exist"));
                }
            }
        }
    }
    refuse(&problems);
}

/// A link whose text is a name in code leads to a file that has a function of that name: a promise
/// names the test that proves it.
#[test]
fn documents_name_functions_that_exist() {
    let mut problems = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            for part in line.split("[`").skip(1) {
                let Some((name, rest)) = part.split_once("`](") else {
                    continue;
                };
                let target = rest.split(')').next().unwrap_or_default();
                let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                if !is_name || !target.ends_with(".rs") {
                    continue;
                }
                let file = fs::read_to_string(path.parent().unwrap().join(target));
                let found = file.is_ok_and(|text| text.contains(&format!("fn {name}(")));
                if !found {
                    let place = format!("{}:{}", shown(&path), i + 1);
                    problems.push(format!("{place}: {target} has no function {name}"));
                }
            }
        }
    }
    refuse(&problems);
}

/// The map of the source has every module of the engine.
#[test]
fn the_map_is_complete() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let lib = fs::read_to_string(root().join("crates/engine/src/lib.rs")).unwrap();
    let order = Order::read(&lib).unwrap();
    let modules = order.0.iter().map(|path| path.split("::").next().unwrap());
    let problems: Vec<String> = modules
        .filter(|module| !map.contains(&format!("`{module}`")))
        .map(|module| format!("docs/architecture.md: says nothing of {module}"))
        .collect();
    refuse(&problems);
}

/// Every `unsafe` is in a file that says why it may.
#[test]
fn unsafe_is_allowed_by_name() {
    let mut problems = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let uses = product_lines(&text).find(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe impl", "unsafe fn"]
                .iter()
                .any(|word| code.contains(word))
                && !code.contains('"')
        });
        if let Some((number, _)) = uses
            && !allows_unsafe(&text)
        {
            let place = format!("{}:{number}", shown(&path));
            problems.push(format!("{place}: unsafe in a file that does not allow it"));
        }
    }
    refuse(&problems);
}

/// Whether a file has `#![allow(unsafe_code, reason = "...")]`, on one line or on several.
fn allows_unsafe(text: &str) -> bool {
    text.split("#![allow(")
        .skip(1)
        .filter_map(|rest| rest.split_once(")]"))
        .any(|(lints, _)| lints.contains("unsafe_code") && lints.contains("reason"))
}

#[test]
fn public_items_are_documented() {
    let undocumented = DOCUMENTED.iter().filter(|dir| {
        let lib = fs::read_to_string(root().join(dir).join("src/lib.rs")).unwrap();
        !lib.contains("#![deny(missing_docs)]")
    });
    let problems: Vec<String> = undocumented
        .map(|dir| format!("{dir}/src/lib.rs: wants #![deny(missing_docs)]"))
        .collect();
    refuse(&problems);
}

/// Every file is part of the build: some other file has a `mod` for it.
#[test]
fn no_source_is_left_out() {
    let mut problems = Vec::new();
    for path in sources() {
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        let dir = path.parent().unwrap();
        let is_root = ["main", "lib", "build"].contains(&stem)
            // What is generated is included.
            || ["examples", "benches", "tests", "fuzz_targets", "bin", "generated"]
                .iter()
                .any(|name| dir.ends_with(name));
        if is_root && stem != "mod" {
            continue;
        }
        let (name, above) = match stem {
            "mod" => (
                dir.file_name().unwrap().to_str().unwrap(),
                dir.parent().unwrap(),
            ),
            stem => (stem, dir),
        };
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|file| above.join(file));
        let beside = above.with_extension("rs");
        let declared = parents.iter().chain([&beside]).any(|parent| {
            fs::read_to_string(parent)
                .is_ok_and(|text| text.lines().any(|line| declares(line, name)))
        });
        if !declared {
            problems.push(format!("{}: no `mod {name};` anywhere", shown(&path)));
        }
    }
    refuse(&problems);
}

fn declares(line: &str, name: &str) -> bool {
    let line = line.trim();
    line.strip_suffix(';')
        .and_then(|line| line.rsplit_once("mod "))
        .is_some_and(|(_, declared)| declared == name)
}

#[test]
fn the_checks_bite() {
    assert!(declares("pub(crate) mod wal;", "wal") && !declares("mod wal_x;", "wal"));
    assert!(allows_unsafe(
        "#![allow(\n    unsafe_code,\n    reason = \"x\"\n)]"
    ));
    assert!(!allows_unsafe("#![allow(unsafe_code)]"));
    assert_eq!(named_paths("use crate::db::Db; // crate::x"), ["db::Db"]);
    assert_eq!(named_paths("use crate::{a, b};"), [""]);
    assert_eq!(
        named_paths("pub(crate) fn f(x: &crate::key::SeqNo)"),
        ["key::SeqNo"]
    );
    assert!(named_paths("use mycrate::db;").is_empty());
    let docs = "//! Module order (why): `a`, `c::x`,\n//! `b`, `c::y`.\n//!\n//! `d`";
    let order = Order::read(docs).unwrap();
    assert_eq!(order.0, ["a", "c::x", "b", "c::y"]);
    let ranks = ["a::T", "c::x::T", "c", "c::z", "d", "T"].map(|path| order.rank(path));
    assert_eq!(ranks, [Some(0), Some(1), Some(3), Some(3), None, None]);
    let found = links("see [a](b.md#c) and [d](https://e)");
    assert_eq!(found, ["b.md#c", "https://e"]);
    let manifest =
        "[dependencies]\nfirn-io.workspace = true\ntokio = \"1\"\n[dev-dependencies]\nx = \"1\"\n";
    let used: Vec<String> = section(manifest, "dependencies").into_iter().collect();
    assert_eq!(used, ["firn-io", "tokio"]);
}
