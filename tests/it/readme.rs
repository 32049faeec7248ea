//! The README does what it says: its commands are run, its configuration is read. (Its program is
//! compiled as a documentation test of the engine.)

use std::process::Command;

use crate::process::{Place, Server};

const README: &str = include_str!("../../README.md");

/// The blocks of a language.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("```{language}\n");
    README
        .match_indices(&fence)
        .map(|(at, fence)| &README[at + fence.len()..])
        .filter_map(|rest| rest.split("```").next())
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn the_commands_print_what_is_written() {
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    if !has_curl {
        eprintln!("skipped: there is no curl");
        return;
    }
    let place = Place::new();
    let server = Server::start(&place.path("d"), &[]);
    // `firn` talks to the default address; here the server has another.
    let script = format!(
        "#!/bin/sh\nverb=$1\nshift\nexec '{}' \"$verb\" --server {} \"$@\"\n",
        env!("CARGO_BIN_EXE_firn"),
        server.address
    );
    std::fs::create_dir(place.path("bin")).unwrap();
    std::fs::write(place.path("bin/firn"), script).unwrap();
    let mut chmod = Command::new("chmod");
    chmod.arg("+x").arg(place.path("bin/firn"));
    assert!(chmod.status().unwrap().success());
    let path = format!(
        "{}:{}",
        place.path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let mut run = 0;
    for block in blocks("console") {
        for part in block.split("$ ").skip(1) {
            let (command, expected) = part.split_once('\n').unwrap();
            let command = command.replace("127.0.0.1:8080", &server.address);
            let output = Command::new("sh")
                .args(["-c", &command])
                .env("PATH", &path)
                .current_dir(place.dir.path())
                .output()
                .unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                printed.trim_end(),
                expected.trim_end(),
                "{command}\n{errors}"
            );
            run += 1;
        }
    }
    assert!(run >= 8, "only {run} commands found");
}

#[test]
fn the_configuration_is_one() {
    let place = Place::new();
    let mut checked = 0;
    for block in blocks("toml") {
        std::fs::write(place.path("firn.toml"), block).unwrap();
        place
            .run(&["config", "check", "--config", "firn.toml"])
            .ok();
        checked += 1;
    }
    assert!(checked > 0);
}
