//! Runs the binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How a run of the command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on stdout")
    }

    /// Stdout of a run that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// The command, without the settings of whoever runs the tests.
pub(crate) fn command() -> Command {
    command_of(None)
}

/// The same with another build.
pub(crate) fn command_of(build: Option<&Path>) -> Command {
    let this = Path::new(env!("CARGO_BIN_EXE_firn"));
    let mut command = Command::new(build.unwrap_or(this));
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FIRN_"))
    {
        command.env_remove(name);
    }
    command
}

/// A directory for one test.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Ended {
        self.run_with(args, b"")
    }

    /// Runs the command in this directory with `input` on stdin.
    pub(crate) fn run_with<S: AsRef<std::ffi::OsStr>>(&self, args: &[S], input: &[u8]) -> Ended {
        let mut child = command()
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The command may end without reading it all.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A server that is ready.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) ready_line: String,
    pub(crate) address: String,
}

/// How long a server may take to answer, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

impl Server {
    pub(crate) fn start(dir: &Path, extra: &[&str]) -> Self {
        match Self::try_start(dir, extra) {
            Ok(server) => server,
            Err(ended) => panic!("the server did not start: {ended:?}"),
        }
    }

    /// Starts a server on a free port and waits for its ready line; or for its end.
    pub(crate) fn try_start(dir: &Path, extra: &[&str]) -> Result<Self, Ended> {
        Self::of(spawn(dir, extra))
    }

    /// Waits for the ready line of a server with pipes; or for its end.
    pub(crate) fn of(mut child: Child) -> Result<Self, Ended> {
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = stdout.read_line(&mut line);
            let _ = send.send(read.map(|_| line));
            // Keeps the pipe open until the server ends.
            let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        });
        let line = match receive.recv_timeout(PATIENCE) {
            Ok(line) => line.unwrap(),
            Err(_) => {
                child.kill().unwrap();
                panic!("no ready line within {PATIENCE:?}");
            }
        };
        if !line.starts_with("ready") {
            let mut stderr = String::new();
            let code = child.wait().unwrap().code().unwrap_or(-1);
            if let Some(mut pipe) = child.stderr.take() {
                let _ = pipe.read_to_string(&mut stderr);
            }
            return Err(Ended {
                code,
                stdout: line.into_bytes(),
                stderr,
            });
        }
        // Unless a test reads it.
        if let Some(mut stderr) = child.stderr.take() {
            std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        }
        let address = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http="))
            .expect("the ready line names the address")
            .to_owned();
        Ok(Self {
            child,
            ready_line: line,
            address,
        })
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end; the exit code, -1 if a signal ended it.
    pub(crate) fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As power for a process: nothing is closed, nothing is flushed.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server process with pipes.
pub(crate) fn spawn(dir: &Path, extra: &[&str]) -> Child {
    command()
        .arg("serve")
        .arg("--data-dir")
        .arg(dir)
        .args(["--http", "127.0.0.1:0", "--resp", "127.0.0.1:0"])
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
